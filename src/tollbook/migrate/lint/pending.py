"""What is not applied yet, told without a database: by a version, or by what a branch of git has."""

import subprocess
from collections.abc import Sequence

from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.files import Folder, Migration

SECONDS_MAX = 30


def find_after(migrations: Sequence[Migration], folder: str, version: str) -> set[str]:
    """Return the ids of a folder's migrations after a version ("0": all), and of the folders behind it."""
    order = list(dict.fromkeys(one.folder for one in migrations))
    behind = set(order[order.index(folder) + 1 :]) if folder in order else set[str]()
    found = {one.id for one in migrations if one.folder in behind}
    passed = version == "0"
    for one in migrations:
        if one.folder == folder:
            if passed:
                found.add(one.id)
            passed = passed or one.version == version
    return found


def find_since(migrations: Sequence[Migration], folders: Sequence[Folder], ref: str) -> set[str]:
    """Return the ids of the migrations whose file is not in a commit, branch or tag. Raises WrongUsage."""
    known = {folder.name: list_files(folder, ref) for folder in folders}
    roots = {folder.name: folder.path for folder in folders}
    return {
        one.id
        for one in migrations
        if one.up.path.relative_to(roots[one.folder]).as_posix() not in known[one.folder]
    }


def list_files(folder: Folder, ref: str) -> set[str]:
    """Return the paths of the files of a folder, from the folder on, as they are in a commit."""
    command = ["git", "ls-tree", "-r", "-z", "--name-only", ref, "--", "."]
    try:
        answer = subprocess.run(
            command, cwd=folder.path, capture_output=True, timeout=SECONDS_MAX, check=False, text=True
        )
    except OSError as error:
        raise WrongUsage(f"git cannot be asked ({error.strerror}). Give --after VERSION instead.") from None
    if answer.returncode:
        why = answer.stderr.strip().splitlines()[-1:] or ["it did not say why"]
        raise WrongUsage(f"git knows no {ref} here ({why[0]}). Fetch it first, or give --after VERSION.")
    return set(answer.stdout.split("\0"))
