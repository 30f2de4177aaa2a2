"""The judge hostile-facilitator: a facilitator that lies to our paywall, a client that asks ours twice."""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hostile_facilitator import hostile_client

import payments
from findings import FAIL, NOT_EXERCISED, PASS, Finding, run_selftest
from stage import Stage
from tollbook.core.chains import AUTHORIZATION_USED_TOPIC

JUDGE = "hostile-facilitator"
BUY = Path(__file__).with_name("buy.py")
FLOWS = ("after", "before")  # the handler: when the paywall settles
SECONDS_MAX = 600
VERDICTS = {"pass": PASS, "fail": FAIL, "error": FAIL, "not_exercised": NOT_EXERCISED}
PROBE_VERDICTS = {"SAFE": PASS, "UNSAFE": FAIL, "UNDETERMINED": NOT_EXERCISED, "NOT_APPLICABLE": FAIL}


def judge(scene: Stage, room: Path, client_seconds: float) -> list[Finding]:
    """Return what the judge in `room` finds; a seller waits `client_seconds` for the facilitator it plays."""
    command = room / "bin" / "hostile-facilitator"
    with ThreadPoolExecutor() as threads:  # a mode is mostly waiting
        played = threads.map(lambda settle: _play_facilitator(scene, command, client_seconds, settle), FLOWS)
        findings = [finding for findings in played for finding in findings]
    return [run_selftest(JUDGE, [command, "selftest"]), *findings, *_play_client(scene)]


def _play_facilitator(scene: Stage, command: Path, client_seconds: float, settle: str) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        result, outcomes = Path(folder) / "result.json", Path(folder) / "outcomes"
        outcomes.touch()
        environment = os.environ | {
            "JUDGES_DATABASE_URL": scene.database_url,
            "JUDGES_OUTCOMES": str(outcomes),
            "JUDGES_SETTLE": settle,
        }
        options = ["--client-timeout", str(client_seconds), "--json", result]
        done = subprocess.run(
            [command, "test", *options, "--", sys.executable, BUY],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        if not result.exists():
            return [Finding(JUDGE, f"{settle}:result", FAIL, done.stderr)]
        document = json.loads(result.read_text())
        told = [json.loads(line) for line in outcomes.read_text().splitlines()]
    if document["summary"]["verdict"] == "INVALID":
        return [Finding(JUDGE, f"{settle}:result", FAIL, done.stdout)]
    rows: list[dict[str, Any]] = document["results"]
    findings = [
        Finding(JUDGE, f"{settle}:{row['mode']}", VERDICTS[row["verdict"]], json.dumps(row)) for row in rows
    ]
    return [*findings, _count_goods(settle, rows, told)]


def _count_goods(settle: str, rows: list[dict[str, Any]], told: list[dict[str, Any]]) -> Finding:
    """Return whether one payment was made in each mode, and its goods came: which the judge does not ask."""
    good = len(told) == len(rows) and all(each["payments"] == len(each["deliveries"]) == 1 for each in told)
    good = good and all(row["distinct"] == 1 for row in rows)
    return Finding(JUDGE, f"{settle}:goods-for-money", PASS if good else FAIL, json.dumps(told))


def _play_client(scene: Stage) -> list[Finding]:
    """Present one payment a probe to our facilitator, twice, as a client that lost the first answer."""
    terms = payments.make_terms(scene)
    payers = [scene.make_payer() for _ in hostile_client.ALL_PROBES]
    results = hostile_client.probe(
        scene.facilitator_url + "/settle",
        [payments.sign(payer, terms) for payer in payers],
        terms,
        poster=_post,
        i_understand_this_spends_real_money=True,  # the local chain's, whose id the judge does not know
    )
    findings = [Finding(JUDGE, each.probe, PROBE_VERDICTS[each.verdict], each.detail) for each in results]
    used = {"fromBlock": "0x0", "address": scene.token, "topics": [AUTHORIZATION_USED_TOPIC]}
    spent = [log["topics"][1][-40:] for log in scene.chain.call("eth_getLogs", used)]
    times = [spent.count(payer.address[2:].lower()) for payer in payers]
    verdict = PASS if set(times) == {1} else FAIL
    return [*findings, Finding(JUDGE, "probes-on-chain", verdict, f"settlements: {times}")]


def _post(url: str, body: dict[str, Any], **options: Any) -> hostile_client.Answer:
    """The judge's own post, with the field that x402 version 2 (section 7.2) has and the judge forgets."""
    return hostile_client._post(url, {"x402Version": 2, **body}, **options)
