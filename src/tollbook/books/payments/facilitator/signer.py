"""The operator's private key: where it comes from, and how it is refused without being shown."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from eth_account import Account

from tollbook.core.errors import Refusal

KEY_VARIABLE = "TOLLBOOK_FACILITATOR_KEY"
KEY_FILE_BYTES_MAX = 1024

_KEY = re.compile(r"0x[0-9a-f]{64}")


class OperatorKeyUnusable(Refusal):
    """The operator's private key is absent, malformed, or readable by others."""

    reason: ClassVar[str] = "operator-key-unusable"
    status: ClassVar[int] = 500


def read_operator_key(key_file: Path | None, environment: Mapping[str, str]) -> str:
    """Return the operator's private key, 0x and 64 hex digits, from its file or else the environment.

    The file must be readable by its owner alone. Raises OperatorKeyUnusable, which never shows the key.
    """
    if key_file is None:
        key = environment.get(KEY_VARIABLE, "")
        if not key:
            raise OperatorKeyUnusable(f"There is no operator's key. Set {KEY_VARIABLE}, or name a key file.")
        return check_operator_key(key)
    try:
        with key_file.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(KEY_FILE_BYTES_MAX).decode("ascii", errors="replace")
    except OSError as error:
        raise OperatorKeyUnusable(f"The key file {key_file} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise OperatorKeyUnusable(
            f"The key file {key_file} is open to others (mode {mode:04o}). Run: chmod 600 {key_file}"
        )
    return check_operator_key(key)


def check_operator_key(text: str) -> str:
    """Return a private key as 0x and 64 hex digits. Raises OperatorKeyUnusable, which never shows it."""
    key = "0x" + text.strip().removeprefix("0x").lower()
    try:
        if not _KEY.fullmatch(key):  # eth_account pads a key that lost a digit: another account's
            raise ValueError
        Account.from_key(key)
    except Exception:  # whatever it says may quote the key
        raise OperatorKeyUnusable(
            "The operator's key is no private key. Give 64 hexadecimal digits, with or without 0x."
        ) from None
    return key
