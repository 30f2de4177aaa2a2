"""squawk, where it is installed: its findings beside ours, less what ours say too or know better."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from tollbook.migrate.errors import MigrateError, find_lines
from tollbook.migrate.lint.rule import Example, Finding, Rule, Severity
from tollbook.migrate.lint.rules import RULES
from tollbook.migrate.lint.unit import File
from tollbook.migrate.lint.walk import Walk, locate

PROGRAM = "squawk"
PREFIX = "squawk:"
SECONDS_MAX = 60
FILES_AT_ONCE_MAX = 200
# What does not hold here: the engine runs a file in one transaction (or names what cannot), sets lock_timeout
# itself, and never runs half a file twice.
NOT_HERE = (
    "prefer-robust-stmts",
    "require-timeout-settings",
    "require-lock-timeout",
    "require-statement-timeout",
    "transaction-nesting",
    "ban-uncommitted-transaction",
    "ban-concurrent-index-creation-in-transaction",
    "syntax-error",
)
LEVELS: dict[str, Severity] = {"Error": "error", "Warning": "notice"}
# Where ours know the rule, ours are heard: they say more, and are silent of what is new and empty.
OURS = {name for rule in RULES for name in rule.squawk}


class SquawkFailed(MigrateError):
    """squawk is installed, but did not answer as it should."""

    reason = "squawk-failed"


def find() -> str | None:
    """Return squawk's version, if it is on PATH."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    answer = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    return answer.stdout.split()[-1] if answer.returncode == 0 and answer.stdout.split() else None


def merge(walk: Walk) -> None:
    """Add what squawk finds in the files that were looked at."""
    paths = list(dict.fromkeys(str(file.script.path) for file in walk.files))
    for start in range(0, len(paths), FILES_AT_ONCE_MAX):
        for row in ask(paths[start : start + FILES_AT_ONCE_MAX]):
            name = str(row["rule_name"])
            if name not in OURS and name not in NOT_HERE:
                _add(walk, name, row)


def ask(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return squawk's findings in these files. Raises SquawkFailed."""
    try:
        answer = subprocess.run(
            [PROGRAM, "--reporter", "json", "--", *paths],
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(answer.stdout or "[]")
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise SquawkFailed(
            f"squawk did not answer ({type(error).__name__}). Mend it, or leave it out by --no-squawk."
        ) from None
    return rows


def _add(walk: Walk, name: str, row: dict[str, Any]) -> None:
    file, index = _locate(walk, row)
    severity = LEVELS.get(str(row["level"]), "notice")
    rule = Rule(PREFIX + name, severity, "", "", "", Example(""))
    statement = file.number_at(index)
    sentence = " ".join(str(part) for part in (row["message"], row.get("help")) if part)
    if walk.allow(file, rule, statement):
        walk.allowed += 1
    else:
        walk.findings.append(Finding(rule.id, severity, locate(file.script, index), sentence))


def _locate(walk: Walk, row: dict[str, Any]) -> tuple[File, int]:
    """Return which file a row is about, and where; up and down may stand in one."""
    files = [file for file in walk.files if str(file.script.path) == str(row["file"])]
    index = find_index(files[0].script.text, int(row["line"]), int(row["column"]))
    return next((file for file in files if file.number_at(index) is not None), files[0]), index


def find_index(text: str, line: int, column: int) -> int:
    """Return the character that squawk's line and column (both from 0, columns in bytes) mean."""
    starts = find_lines(text)
    if line >= len(starts):
        return len(text)
    # A character has no more columns than bytes, so that those of the line's beginning are enough.
    words = text[starts[line] : starts[line] + column].encode()[:column].decode(errors="ignore")
    return starts[line] + len(words)
