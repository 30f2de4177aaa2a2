"""What keeps `make judges` from being green."""

import importlib.util
import re
from pathlib import Path

JUDGES = Path(__file__).parents[2] / "judges"

_spec = importlib.util.spec_from_file_location("findings", JUDGES / "findings.py")
assert _spec is not None
assert _spec.loader is not None
findings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(findings)

EXEMPT = findings.Exemption("judge", "F3", "fail", "why")


def find(verdict: str, *exemptions: object) -> list[str]:
    return findings.find_faults([findings.Finding("judge", "F3", verdict)], list(exemptions))


def test_a_check_that_fails_is_a_fault_unless_it_is_excepted() -> None:
    assert find("pass") == []
    assert len(find("fail")) == 1
    assert len(find("not exercised")) == 1
    assert find("fail", EXEMPT) == []


def test_an_exception_covers_its_own_verdict_and_no_other() -> None:
    assert len(find("not exercised", EXEMPT)) == 2


def test_an_exception_that_is_not_needed_is_a_fault() -> None:
    assert len(find("pass", EXEMPT)) == 1
    assert len(findings.find_faults([], [EXEMPT])) == 1


def test_every_exception_is_argued_and_none_is_for_a_pass() -> None:
    exemptions = findings.read_exemptions()
    assert exemptions
    assert len({(each.judge, each.check) for each in exemptions}) == len(exemptions)
    for each in exemptions:
        assert each.verdict in (findings.FAIL, findings.NOT_EXERCISED)
        assert each.why.strip()


def test_the_judges_are_pinned_with_hashes() -> None:
    text = (JUDGES / "requirements.txt").read_text()
    named = re.findall(r"^([a-z][a-z0-9-]*)(==\S+)? \\$", text, re.MULTILINE)
    assert {"hostile-facilitator", "x402-conformance", "agent-security-harness"} <= {
        name for name, _ in named
    }
    assert all(version for _, version in named)
    assert text.count("--hash=sha256:") >= len(named)
