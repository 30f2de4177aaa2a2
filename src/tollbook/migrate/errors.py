"""What the engine refuses: each refusal has a reason, a sentence that says what to do next, an exit code."""

from __future__ import annotations

from dataclasses import dataclass

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_PENDING = 3
EXIT_VERIFICATION = 4


class MigrateError(Exception):
    """A refusal or failure: `str(error)` is one sentence for people, `reason` one word for programs."""

    reason: str = "failed"
    exit_code: int = EXIT_REFUSED

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def facts(self) -> dict[str, object]:
        """The refusal as a JSON object."""
        return {"error": self.reason, "message": self.sentence, "exit_code": self.exit_code}


class WrongUsage(MigrateError):
    """The command cannot be understood or may not be run this way."""

    reason = "wrong-usage"
    exit_code = EXIT_USAGE


class BadFolder(MigrateError):
    """A migration folder or file cannot be read as one."""

    reason = "bad-folder"


class CannotConnect(MigrateError):
    """No server answers at the address, or it does not let us in."""

    reason = "cannot-connect"


class ConnectionLost(MigrateError):
    """The server went away during the work; what was not committed is rolled back."""

    reason = "connection-lost"


class PoolerInTheWay(MigrateError):
    """A transaction pooler moves our session between backends, so a session lock would hold nothing."""

    reason = "transaction-pooler"


class LockHeld(MigrateError):
    """Another run holds the engine's lock longer than we wait."""

    reason = "lock-held"


class ToolMissing(MigrateError):
    """pg_dump or pg_restore is absent or too old for the server."""

    reason = "tool-missing"


class BackupFailed(MigrateError):
    """No complete backup was written, so nothing was applied."""

    reason = "backup-failed"


class RestoreFailed(MigrateError):
    """The backup could not be put back."""

    reason = "restore-failed"


class CannotRevert(MigrateError):
    """There is no way back: no down SQL, or nothing to revert."""

    reason = "cannot-revert"


class PreflightFailed(MigrateError):
    """Something would go wrong, found before anything was changed. `findings` holds every sentence."""

    reason = "preflight-failed"

    def __init__(self, findings: list[str]) -> None:
        super().__init__("Refused before anything was changed:\n" + "\n".join(f"  - {f}" for f in findings))
        self.findings = findings

    def facts(self) -> dict[str, object]:
        """The refusal as a JSON object, each finding apart."""
        sentence = f"Refused before anything was changed: {len(self.findings)} findings."
        return {**super().facts(), "message": sentence, "findings": self.findings}


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file: 1-based line and column (columns in characters), and the text of the line."""

    file: str
    line: int
    column: int
    text: str


class StatementFailed(MigrateError):
    """PostgreSQL refused a statement of a migration; the migration is rolled back."""

    reason = "statement-failed"

    def __init__(self, sentence: str, *, where: Where | None, sqlstate: str | None, hint: str | None) -> None:
        super().__init__(sentence)
        self.where = where
        self.sqlstate = sqlstate
        self.hint = hint

    def facts(self) -> dict[str, object]:
        """The refusal as a JSON object, with file, line, column, SQLSTATE and the server's hint."""
        place = self.where
        return {
            **super().facts(),
            "file": place.file if place else None,
            "line": place.line if place else None,
            "column": place.column if place else None,
            "sql": place.text if place else None,
            "sqlstate": self.sqlstate,
            "hint": self.hint,
        }


class VerificationFailed(MigrateError):
    """The SQL ran, but what it promised is not there or a check did not hold; it is rolled back."""

    reason = "verification-failed"
    exit_code = EXIT_VERIFICATION

    def __init__(self, sentence: str, *, missing: list[str]) -> None:
        super().__init__(sentence)
        self.missing = missing

    def facts(self) -> dict[str, object]:
        """The refusal as a JSON object, with the names of what is missing or did not hold."""
        return {**super().facts(), "missing": self.missing}
