"""The operator's private keys: where they come from, and how they are refused without being shown."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from eth_account import Account
from solders.keypair import Keypair

from tollbook.core.errors import Refusal
from tollbook.core.private_files import read_private

KEY_VARIABLE = "TOLLBOOK_FACILITATOR_KEY"
SOLANA_KEY_VARIABLE = "TOLLBOOK_SOLANA_KEY"

_KEY = re.compile(r"0x[0-9a-f]{64}")
_KEYPAIR = re.compile(r"\[.*|[1-9A-HJ-NP-Za-km-z]{80,90}", re.DOTALL)


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
    return check_operator_key(read_private(key_file, "The key file", OperatorKeyUnusable))


def read_operator_keys(key_files: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
    """Return the keys of both families: those of the files, and a family's without one from its variable.

    EVM's as 0x and 64 hex digits, Solana's as the base 58 text of 64 bytes. Raises OperatorKeyUnusable.
    """
    texts = [read_private(file, "The key file", OperatorKeyUnusable) for file in key_files]
    for variable, of_solana in ((KEY_VARIABLE, False), (SOLANA_KEY_VARIABLE, True)):
        text = environment.get(variable, "")
        if text and not any(is_solana_key(other) is of_solana for other in texts):
            texts.append(text)
    return [str(read_keypair(text)) if is_solana_key(text) else check_operator_key(text) for text in texts]


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


def is_solana_key(text: str) -> bool:
    """Whether a key is in one of Solana's spellings, usable or not: a JSON array, or much base 58."""
    return _KEYPAIR.fullmatch(text.strip()) is not None


def read_keypair(text: str) -> Keypair:
    """Return a Solana key: base 58 of its 64 bytes, or the JSON array of numbers that Solana's tools write.

    Raises OperatorKeyUnusable, which never shows it.
    """
    text = text.strip()
    try:
        if text.startswith("["):
            return Keypair.from_bytes(bytes(json.loads(text)))
        return Keypair.from_base58_string(text)
    except BaseException as error:  # whatever it says may quote the key; the library panics on some texts
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise OperatorKeyUnusable(
            "The key is no Solana key. Give the base 58 text of its 64 bytes, or their JSON array."
        ) from None
