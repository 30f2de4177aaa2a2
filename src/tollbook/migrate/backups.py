"""Backups: one pg_dump file in custom format, private, on disk and readable before it counts as one."""

import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tollbook.migrate import tools
from tollbook.migrate.errors import BackupFailed, MigrateError
from tollbook.migrate.events import Event, Listener, ignore
from tollbook.migrate.session import Connection, connected, hide, read_url
from tollbook.migrate.tools import Tools

LOCK_WAIT_MILLISECONDS_MAX = 60_000
LIST_SECONDS_MAX = 600
MESSAGE_LINES_MAX = 5


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup. entries: what pg_restore lists in it."""

    path: Path
    bytes: int
    entries: int
    duration_seconds: float


def state_folder() -> Path:
    """Return where backups and logs go if nothing else is said."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "tollbook"


def default_folder() -> Path:
    """Return TOLLBOOK_BACKUP_DIR, or `backups` in the user's state folder."""
    said = os.environ.get("TOLLBOOK_BACKUP_DIR")
    return Path(said) if said else state_folder() / "backups"


def backup(url: str, folder: Path | None = None, listen: Listener = ignore) -> Backup:
    """Back the whole database up into a folder. Raises BackupFailed, DatabaseUnreachable."""
    with connected(url) as conn:
        return write(conn, url, folder or default_folder(), listen)


def write(conn: Connection, url: str, folder: Path, listen: Listener) -> Backup:
    """Write a backup of the database of this session. On any failure no partial file is left."""
    parameters = read_url(url)
    found = tools.find(conn.info.server_version)
    started = datetime.now(UTC)
    path = _choose_path(folder, conn.info.dbname, started)
    listen(Event("backing up", f"Backing up {conn.info.dbname} to {path}", {"path": str(path)}))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)) as file:
            _dump(found, parameters, partial)
            os.fsync(file.fileno())
        entries = list_entries(found, partial)
        if not entries and holds_tables(conn):
            raise BackupFailed("pg_dump wrote a backup that lists nothing. Do not rely on it; nothing was changed.")
        partial.rename(path)
        _sync_folder(folder)
    except OSError as error:
        raise BackupFailed(f"The backup {path} could not be written: {error.strerror}. Nothing was changed.") from None
    finally:
        partial.unlink(missing_ok=True)
    seconds = (datetime.now(UTC) - started).total_seconds()
    done = Backup(path, path.stat().st_size, len(entries), seconds)
    listen(Event("backed up", f"Backup: {path} ({done.bytes:,} bytes, {seconds:.1f} s)", {"path": str(path)}))
    return done


def holds_tables(conn: Connection) -> bool:
    """Whether there is anything to lose: a table that is not the system's, an extension's or the engine's."""
    row = conn.execute(
        """SELECT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_'
              AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
                AND d.classid = 'pg_class'::regclass))"""
    ).fetchone()
    return bool(row and row[0])


def _choose_path(folder: Path, database: str, at: datetime) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BackupFailed(
            f"The backup folder {folder} cannot be made: {error.strerror}. Choose another by --backup-dir."
        ) from None
    word = re.sub(r"[^A-Za-z0-9_-]", "_", database)
    return folder.absolute() / f"{word}-{at:%Y%m%dT%H%M%S.%fZ}.dump"


def _dump(found: Tools, parameters: dict[str, str], path: Path) -> None:
    database, environment = tools.address(parameters)
    command = [
        found.path("pg_dump"), "--format=custom", f"--file={path}", "--no-password",
        f"--lock-wait-timeout={LOCK_WAIT_MILLISECONDS_MAX}", f"--dbname={database}",
    ]  # fmt: skip
    ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode != 0:
        raise BackupFailed(
            f"pg_dump failed ({hide(_last_lines(ran.stderr), parameters) or f'code {ran.returncode}'}). Nothing was "
            "changed and no partial file is left. Free some space or choose another --backup-dir, then run again."
        )


def list_entries(found: Tools, path: Path) -> list[str]:
    """Return the lines of a backup's table of contents. Raises BackupFailed where it cannot be read."""
    ran = subprocess.run(
        [found.path("pg_restore"), "--list", str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIST_SECONDS_MAX,
    )
    entries = [line for line in ran.stdout.splitlines() if line and not line.startswith(";")]
    if ran.returncode != 0 or "TOC Entries" not in ran.stdout:
        raise BackupFailed(f"pg_restore cannot read the backup {path} ({_last_lines(ran.stderr)}). Do not rely on it.")
    return entries


def _last_lines(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines()[-MESSAGE_LINES_MAX:] if line.strip())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(folder: Path) -> MigrateError | None:
    """Return why no backup can be written into a folder, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        return BackupFailed(f"The backup folder {folder} cannot be made: {error.strerror}.")
    return None if os.access(folder, os.W_OK | os.X_OK) else BackupFailed(f"{folder} cannot be written to.")
