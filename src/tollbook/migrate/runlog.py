"""A log file for each run: when what happened, never a secret; only the newest files are kept."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from tollbook.migrate.events import Event, Listener
from tollbook.migrate.objects import show_counts

LOGS_MAX = 50


def default_dir() -> Path:
    """Return the folder for logs: TOLLBOOK_LOG_DIR, or one in the user's state folder."""
    if said := os.environ.get("TOLLBOOK_LOG_DIR"):
        return Path(said).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "tollbook" / "logs"


class RunLog:
    """Writes every event to a new file, line by line as it happens, and passes it on.

    Where no file can be written (a read-only container) the run goes on without one, and `path` is None.
    """

    def __init__(self, command: str, listen: Listener, folder: Path | None = None) -> None:
        self.listen = listen
        self.path: Path | None = None
        folder = folder or default_dir()
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _keep_newest(folder)
            path = folder / f"migrate-{command}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.log"
            # Unbuffered: a killed run's log ends with what it was doing.
            self.file = open(path, "xb", buffering=0, opener=_open_private)  # noqa: SIM115
            self.path = path

    def __call__(self, event: Event) -> None:
        """Write an event down and pass it on."""
        if self.path is not None:
            step = event.data.get("step")
            figures = f" {step.duration_seconds:.3f} s {show_counts(step.counts)}" if step else ""
            file = f" {event.data['file']}" if "file" in event.data else ""
            with suppress(OSError):  # a full disk must not stop a migration half way through a run
                self._write(f"{event.at.isoformat()} {event.kind}: {event.text}{file}{figures}")
        self.listen(event)

    def _write(self, line: str) -> None:
        self.file.write(f"{line}\n".encode(errors="replace"))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            with suppress(OSError):
                outcome = f"failed: {error}" if error else "ended"
                self._write(f"{datetime.now(UTC).isoformat()} {outcome}")
                self.file.close()


def _open_private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _keep_newest(folder: Path) -> None:
    old = sorted(folder.glob("migrate-*.log"), key=lambda path: path.stat().st_mtime)
    for path in old[: max(0, len(old) - LOGS_MAX + 1)]:
        path.unlink(missing_ok=True)
