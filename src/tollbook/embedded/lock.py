"""One starter at a time: an exclusive lock on a folder, gone with the process that holds it."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tollbook.embedded.errors import EmbeddedServerFailed, NoAccess

WAIT_SECONDS_MAX = 360  # longer than a start may take
POLL_SECONDS = 0.02


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the lock of an existing folder; the folder itself is locked, so no lock file is left behind."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        raise NoAccess(
            f"{folder} belongs to another user. Run as that user, or choose another folder with --data-dir."
        ) from None
    try:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not try_lock(held):
            if time.monotonic() > deadline:
                raise EmbeddedServerFailed(
                    f"Another process has been starting or stopping the server in {folder} for "
                    f"{WAIT_SECONDS_MAX} seconds. See what it is (`fuser {folder}`), end it and try again."
                )
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(held)


def try_lock(descriptor: int) -> bool:
    """Lock without waiting; False when another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
