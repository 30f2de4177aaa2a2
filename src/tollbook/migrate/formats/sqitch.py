"""Sqitch: a plan of changes in their order, with a deploy, a revert and a verify script for each."""

import re
from dataclasses import replace
from pathlib import Path

from tollbook.migrate.errors import FolderRefused, Place
from tollbook.migrate.files import Folder, Migration, Script, read_script
from tollbook.migrate.formats import sections

PLAN = "sqitch.plan"
ENGINE = re.compile(r"(?m)^\s*engine\s*=\s*(\w+)")
TOP = re.compile(r"(?m)^\s*top_dir\s*=\s*(\S+)")
FILE = re.compile(r"(?m)^\s*plan_file\s*=\s*(\S+)")
# name, [dependencies], time, person: all that is read here is the name, and for a tag its own
CHANGE = re.compile(r"(?P<tag>@)?(?P<name>[^\s\[]+)(?:\s|$)")
VERIFY = re.compile(r"(?mi)^\s*verify\s*=\s*(?:true|yes|on|1)\s*$")
ENDING = re.compile(r"(?mi)^\s*(?:BEGIN|ROLLBACK|START\s+TRANSACTION)\s*;[ \t]*$")


def recognise(path: Path) -> bool:
    """Whether a plan of Sqitch lies here, or where the configuration here says."""
    return _find(path)[1] is not None


def _find(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of the scripts, and the plan: as the settings say, or any file that is one."""
    settings = path / "sqitch.conf"
    text = settings.read_text() if settings.is_file() else ""
    top, file = TOP.search(text), FILE.search(text)
    root = path / top[1] if top else path
    named = path / file[1] if file else root / PLAN
    plans = (
        one for one in sorted(root.glob("*.plan")) if "%syntax-version" in one.read_text(errors="replace")
    )
    return root, named if named.is_file() else next(plans, None)


def read(folder: Folder) -> list[Migration]:
    """Return the plan's changes in its order. Raises FolderRefused."""
    root, plan = _find(folder.path)
    if plan is None:
        raise FolderRefused(f"There is no {PLAN} here.", Place(str(folder.path)))
    settings = folder.path / "sqitch.conf"
    engine = ENGINE.search(settings.read_text()) if settings.is_file() else None
    if engine and engine[1] not in ("pg", "cockroach", "yugabyte"):
        raise FolderRefused(f"This plan is for {engine[1]}, not for PostgreSQL.", Place(str(settings)))
    # Sqitch runs its verify scripts at a deployment only where it is told to: many need what comes later.
    verify = bool(VERIFY.search(settings.read_text())) if settings.is_file() else False
    return [_pair(folder, root, label, file, verify=verify) for label, file in _read_plan(plan)]


def _read_plan(path: Path) -> list[tuple[str, str]]:
    """Return the names of changes and of their scripts: one that was reworked later has a tag in it."""
    changes: list[str] = []
    tags: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("%"):
            continue
        match = CHANGE.match(text)
        if match is None or text[0] in "+-":
            raise FolderRefused("This line of the plan cannot be read.", Place(str(path), number))
        if match["tag"]:
            tags.append((len(changes), match["name"]))
        else:
            changes.append(match["name"])
    found: list[tuple[str, str]] = []
    for place, name in enumerate(changes):
        later = name in changes[place + 1 :]
        tag = next((tag for after, tag in tags if after > place), None) if later else None
        full = f"{name}@{tag}" if tag else name
        found.append((full, full))
    return found


def _pair(folder: Folder, root: Path, label: str, file: str, *, verify: bool) -> Migration:
    deploy, revert, check = (root / part / f"{file}.sql" for part in ("deploy", "revert", "verify"))
    if not deploy.is_file():
        raise FolderRefused("The plan names this script, which is not there.", Place(str(deploy)))
    return Migration(
        folder.name,
        label,
        label,
        read_script(deploy),
        read_script(revert) if revert.is_file() else None,
        _read_check(check) if verify and check.is_file() else None,
    )


def _read_check(path: Path) -> Script:
    """Read a verify script: it begins and rolls back itself, and fails by an error only."""
    script = read_script(path)
    spans, done = list[tuple[int, int]](), 0
    for match in ENDING.finditer(script.text):
        spans.append((done, match.start()))
        done = match.end()
    spans.append((done, len(script.text)))
    return sections.cut(script, spans, replace(script.options, truths=False))
