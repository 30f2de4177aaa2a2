"""Where the secret of encrypted backups comes from: a file or the environment, never an argument."""

from __future__ import annotations

import os
from pathlib import Path

from tollbook.migrate.age import Identity, Key, Passphrase, generate, read_key
from tollbook.migrate.errors import WrongUsage

PASSPHRASE = "TOLLBOOK_BACKUP_PASSPHRASE"  # noqa: S105  (its name)
PASSPHRASE_FILE = "TOLLBOOK_BACKUP_PASSPHRASE_FILE"  # noqa: S105
KEY_FILE = "TOLLBOOK_BACKUP_KEY_FILE"
FILE_BYTES_MAX = 64 * 1024
PASSPHRASE_CHARACTERS_MIN = 8


def find(passphrase_file: Path | None = None, key_file: Path | None = None) -> Key | None:
    """Return the secret of these files, or else of the environment, if any. Raises WrongUsage."""
    if passphrase_file and key_file:
        raise WrongUsage("Give a passphrase or a key file, not both.")
    if passphrase_file is None and key_file is None:
        if words := os.environ.get(PASSPHRASE):
            return make_passphrase(words)
        passphrase_file, key_file = _from_environment(PASSPHRASE_FILE), _from_environment(KEY_FILE)
    if passphrase_file:
        return make_passphrase(_read(passphrase_file).rstrip("\r\n"))
    return read_key_file(key_file) if key_file else None


def make_passphrase(words: str) -> Passphrase:
    """Return a passphrase; refuses one that is soon guessed."""
    if len(words) < PASSPHRASE_CHARACTERS_MIN:
        raise WrongUsage(
            f"A passphrase has {PASSPHRASE_CHARACTERS_MIN} characters or more; better four words."
        )
    return Passphrase(words)


def read_key_file(path: Path) -> Key:
    """Read a key as age-keygen writes it: age1… (only encrypts) or AGE-SECRET-KEY-1…; # begins a comment."""
    lines = [line.strip() for line in _read(path).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1:
        raise WrongUsage(f"{path} has {len(keys)} keys in it; one is wanted, age1… or AGE-SECRET-KEY-1….")
    try:
        return read_key(keys[0])
    except ValueError as error:
        raise WrongUsage(f"{path} has no key in it: {error}.") from None


def create_key_file(path: Path) -> Identity:
    """Make a new secret key, in a new file for its owner alone."""
    made = generate()
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"# public key: {made.recipient}\n{made.write()}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WrongUsage(
            f"{path} cannot be made: {error.strerror}. Name a file that is not there yet."
        ) from None
    return made


def _from_environment(name: str) -> Path | None:
    given = os.environ.get(name)
    return Path(given).expanduser() if given else None


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not text"
        raise WrongUsage(f"{path} cannot be read: {said}.") from None
