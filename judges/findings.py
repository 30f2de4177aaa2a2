"""What a judge found: one row of the table, and what is excepted."""

import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

EXCEPTIONS = Path(__file__).with_name("exceptions.toml")
PASS = "pass"
FAIL = "fail"
NOT_EXERCISED = "not exercised"  # the judge says itself that it could not tell
DETAIL_CHARS_MAX = 300
SELFTEST_SECONDS_MAX = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one judge. `verdict` is PASS, FAIL or NOT_EXERCISED."""

    judge: str
    check: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Exemption:
    """A check that may end with one verdict other than PASS, and the argument why."""

    judge: str
    check: str
    verdict: str
    why: str


def read_exemptions() -> list[Exemption]:
    """Return what exceptions.toml says."""
    return [
        Exemption(row["judge"], check, row["verdict"], row["why"])
        for row in tomllib.loads(EXCEPTIONS.read_text())["exception"]
        for check in row["checks"]
    ]


def run_selftest(judge: str, command: list[str | Path]) -> Finding:
    """Return whether the judge catches the broken doubles that it brings along, as its own command says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SELFTEST_SECONDS_MAX)
    return Finding(judge, "selftest", PASS if done.returncode == 0 else FAIL, done.stderr)


def find_faults(findings: list[Finding], exemptions: list[Exemption]) -> list[str]:
    """Return what keeps the run from being green: failures not excepted, and exceptions not needed."""
    excepted = {(each.judge, each.check): each.verdict for each in exemptions}
    seen = {(each.judge, each.check): each.verdict for each in findings}
    faults = [
        f"{each.judge} {each.check}: {each.verdict}. {each.detail[:DETAIL_CHARS_MAX]}"
        for each in findings
        if each.verdict not in (PASS, excepted.get((each.judge, each.check)))
    ]
    faults += [
        f"{judge} {check} is excepted as {verdict!r}, but was {seen.get((judge, check))!r}"
        for (judge, check), verdict in excepted.items()
        if seen.get((judge, check)) != verdict
    ]
    return faults
