"""Folders and files that are ours for a while; those that a kill left are removed by the next who comes."""

import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

SWEEP_MAX = 100  # left-over ones looked at in one go
SWEEP_AGE_SECONDS = 60  # a younger one may be about to be locked by its writer


@contextmanager
def temporary(prefix: str) -> Generator[Path]:
    """Give a closed folder among the temporary files; those that a kill left go too."""
    sweep(Path(tempfile.gettempdir()).glob(f"{prefix}*"))
    with hold(Path(tempfile.mkdtemp(prefix=prefix))) as path:
        yield path


@contextmanager
def hold(path: Path) -> Generator[Path]:
    """Hold a folder that was just made; it is removed in the end."""
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def sweep(found: Iterable[Path]) -> None:
    """Remove files and folders of ours that nobody holds any more."""
    for left in itertools.islice(found, SWEEP_MAX):
        with suppress(OSError):  # another's, or just gone
            _remove_if_left(left)


def _remove_if_left(path: Path) -> None:
    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(held)
        if found.st_uid == os.geteuid() and time.time() - found.st_mtime > SWEEP_AGE_SECONDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(held)
