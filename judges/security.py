"""The judge agent-security-harness: its tests of x402, against a shop spoken to in the judge's dialect."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import stage
from dialect import Dialect
from findings import FAIL, NOT_EXERCISED, PASS, Finding
from stage import Stage
from tollbook.core.local_chain import NETWORK

JUDGE = "agent-security-harness"
MODULE = "protocol_tests.x402_harness"
TESTS = 54  # of this version: a test that is left out is told
SECONDS_MAX = 300


def judge(scene: Stage, room: Path) -> list[Finding]:
    """Return what the judge in `room` finds."""
    shop = stage.make_shop(scene.database_url, scene.facilitator_url, NETWORK, scene.seller.address)
    with stage.serve(Dialect(shop)) as url, tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        target = ["--url", url, "--paid-path", stage.PATH]
        command = [room / "bin" / "python", "-m", MODULE, *target, "--report", report]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX)
        if not report.exists():
            return [Finding(JUDGE, "report", FAIL, done.stderr)]
        results: list[dict[str, Any]] = json.loads(report.read_text())["results"]
    if len(results) != TESTS:
        return [Finding(JUDGE, "report", FAIL, f"{len(results)} tests ran, not {TESTS}")]
    return [_read(result) for result in results]


def _read(result: dict[str, Any]) -> Finding:
    failure = NOT_EXERCISED if result["not_evaluated"] else FAIL
    detail = f"{result['name']}: {result['details']}"
    return Finding(JUDGE, result["test_id"], PASS if result["passed"] else failure, detail)
