"""Files that hold a secret: read only where nobody else may read them."""

import os
import stat
from pathlib import Path

from tollbook.core.errors import Refusal

BYTES_MAX = 1024


def read_private(file: Path, what: str, refusal: type[Refusal]) -> str:
    """Return a file's text, at most BYTES_MAX bytes. Raises `refusal`, which calls the file `what`.

    So it does where the file cannot be read, and where its mode lets others read it.
    """
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(BYTES_MAX).decode("ascii", errors="replace")
    except OSError as error:
        raise refusal(f"{what} {file} cannot be read: {error.strerror}.") from None
    if mode & 0o077:
        raise refusal(f"{what} {file} is open to others (mode {mode:04o}). Run: chmod 600 {file}")
    return text
