"""A PostgreSQL server for one command: made in a temporary folder, and gone with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tollbook.migrate.errors import ToolMissing
from tollbook.migrate.pg_tools import Target, find_tool, read_major, read_target

PORT = 5432  # names the socket file
START_SECONDS_MAX = 60
POLL_SECONDS = 0.05
# Root may not run PostgreSQL; one of these does it then.
ACCOUNTS = ("tollbook", "postgres", "nobody")
# What is in it is thrown away: nothing needs to outlast a crash.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_locks_per_transaction": "1024",
    "autovacuum": "off",
}
# Ends the server and removes its folder when its input ends: when we say so, or when we are killed.
GUARD = """
"$@" >"$0/log" 2>&1 &
server=$!
cat >/dev/null
kill -QUIT $server
wait $server
rm -rf "$0"
"""


@contextmanager
def started() -> Generator[tuple[Target, int]]:
    """Give an empty database of a new server, and its major version. Raises ToolMissing."""
    programs = {name: find_tool(name) for name in ("initdb", "postgres")}
    folder, account = Path(tempfile.mkdtemp(prefix="tollbook-scratch-")), _choose_account()
    process = None
    try:
        process = _start(programs, folder, account)
        target = read_target(f"postgresql:///postgres?host={folder}&port={PORT}&user=postgres")
        _await(target, process, folder)
        yield target, read_major(programs["postgres"]) or 0
    finally:
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _choose_account() -> pwd.struct_passwd | None:
    """Return who runs it; None: we do."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise ToolMissing("PostgreSQL refuses to run as root, and no other account is here. Run as another user.")


def _start(
    programs: dict[str, Path], folder: Path, account: pwd.struct_passwd | None
) -> subprocess.Popen[bytes]:
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    made = subprocess.run(
        [programs["initdb"], "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    if made.returncode != 0:
        raise ToolMissing(f"No server could be made to try it on: {_last_line(made.stderr)}.")
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    server = [programs["postgres"], "-D", data, "-k", folder, "-p", str(PORT), *settings]
    return subprocess.Popen(
        ["sh", "-c", GUARD, folder, *server],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C is ours to answer
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )


def _await(target: Target, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            target.connect().close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline or process.poll() is not None:
                with suppress(OSError):
                    said = _last_line((folder / "log").read_text(errors="replace"))
                    raise ToolMissing(f"No server could be started to try it on: {said}.") from None
                raise
            time.sleep(POLL_SECONDS)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
