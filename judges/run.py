"""Three outside judges of x402 against the real product: `make judges`. What each checks: docs/judges.md."""

import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOM = Path(__file__).resolve().parents[1] / "build" / "judges"  # the judges' own virtual environment
site.addsitedir(sysconfig.get_path("purelib", vars={"base": str(ROOM)}))

import conformance  # noqa: E402 - the judges' packages come first
import hostile  # noqa: E402
import security  # noqa: E402
import stage  # noqa: E402
from findings import PASS, Finding, find_faults, read_exemptions  # noqa: E402

CLIENT_SECONDS = 3.0


def main() -> int:
    """Run all judges, or those that are named, print what they found, and return the exit code."""
    judges: dict[str, Callable[[stage.Stage], list[Finding]]] = {
        hostile.JUDGE: lambda scene: hostile.judge(scene, ROOM, CLIENT_SECONDS),
        conformance.JUDGE: lambda scene: conformance.judge(scene, ROOM),
        security.JUDGE: lambda scene: security.judge(scene, ROOM),
    }
    called = sys.argv[1:] or list(judges)
    findings: list[Finding] = []
    for name in called:
        with stage.open_stage() as scene:
            findings += judges[name](scene)
    exemptions = [each for each in read_exemptions() if each.judge in called]
    excepted = {(each.judge, each.check, each.verdict) for each in exemptions}
    for each in findings:
        mark = " (excepted)" if (each.judge, each.check, each.verdict) in excepted else ""
        print(f"{each.judge:<23} {each.check:<28} {each.verdict}{mark}")
    faults = find_faults(findings, exemptions)
    passed = sum(each.verdict == PASS for each in findings)
    argued = sum((each.judge, each.check, each.verdict) in excepted for each in findings)
    print(f"{len(findings)} checks: {passed} passed, {argued} excepted, {len(faults)} faults")
    for fault in faults:
        print(f"NOT GREEN: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
