"""The installation's secret key: it seals what the database keeps and we must read again: webhook secrets."""

import functools
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tollbook.core.errors import Refusal
from tollbook.core.private_files import read_private

if TYPE_CHECKING:
    from tollbook.core.settings import Settings

VARIABLE = "TOLLBOOK_SECRET_KEY"
FILE_VARIABLE = "TOLLBOOK_SECRET_KEY_FILE"
FILE = "secret.key"
KEY_BYTES = 32

_KEY = re.compile(r"[0-9a-fA-F]{64}")


class SecretKeyUnusable(Refusal):
    """The installation's secret key is absent, malformed, or readable by others. It is never shown."""

    reason = "secret-key-unusable"
    status = 503


def find_secret_key(settings: "Settings") -> bytes:
    """The 32 bytes of TOLLBOOK_SECRET_KEY, of the file TOLLBOOK_SECRET_KEY_FILE, or of the data folder's.

    With the embedded database the last one is made, of mode 0600, where it is missing. A database of one's
    own may have processes on many machines, which must have the same key: there it is never made.
    Raises SecretKeyUnusable.
    """
    if settings.secret_key is not None:
        return _read(settings.secret_key.get_secret_value(), VARIABLE)
    if settings.secret_key_file is not None:
        return _read_file(settings.secret_key_file)
    if settings.database_url is not None:
        raise SecretKeyUnusable(
            "There is no secret key, and what is kept sealed needs one. Make it once: openssl rand -hex 32. "
            f"Give it to every process as {VARIABLE}, or as a file of mode 0600 by {FILE_VARIABLE}."
        )
    if settings.storage == "memory":
        return _make_for_this_process()
    return _read_or_make(settings.data_dir.expanduser() / FILE)


@functools.cache
def _make_for_this_process() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def _read_or_make(file: Path) -> bytes:
    try:
        if not file.exists():
            _make(file)
    except OSError as error:  # a folder that may not be written to, or on a file system without hard links
        raise SecretKeyUnusable(
            f"The secret key's file {file} cannot be made: {error.strerror}. Make it by hand, once: "
            f"`(umask 077; set -C; openssl rand -hex 32 > {shlex.quote(str(file))})`."
        ) from None
    return _read_file(file)


def _make(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(KEY_BYTES) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.link(draft, file)  # whole or not at all, and never over another's
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # what is sealed with it must not outlive its name
    finally:
        os.close(folder)


def _read_file(file: Path) -> bytes:
    return _read(read_private(file, "The secret key's file", SecretKeyUnusable), str(file))


def _read(text: str, where: str) -> bytes:
    if not _KEY.fullmatch(text.strip()):
        raise SecretKeyUnusable(
            f"{where} is no secret key. It has 64 hexadecimal digits: openssl rand -hex 32."
        )
    return bytes.fromhex(text.strip())
