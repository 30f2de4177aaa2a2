"""What the engine costs: 100 small migrations, against psql running the same files one transaction each.

    python bench/migrate.py [ROUNDS]

Prints medians and ratios; the goal is within 1.5 times psql.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from psycopg import sql

from tollbook import migrate
from tollbook.core.embedded import Server, binaries, throwaway

MIGRATIONS = 100
ROUNDS = 7
GOAL = 1.5


def write_files(folder: Path) -> None:
    """Write small migrations: a table with an index, and a view on it."""
    for n in range(1, MIGRATIONS + 1):
        (folder / f"{n:04}_t{n}.up.sql").write_text(
            f"CREATE TABLE t{n} (id bigint PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL);\n"
            f"CREATE INDEX t{n}_at ON t{n} (at);\n"
            f"CREATE VIEW v{n} AS SELECT id, name FROM t{n};\n"
        )
    lines = [f"BEGIN;\n\\i {path}\nCOMMIT;\n" for path in sorted(folder.glob("*.up.sql"))]
    (folder / "all.psql").write_text("".join(lines))


def apply_by_psql(url: str, folder: Path) -> None:
    """Run every file between BEGIN and COMMIT, in one psql process."""
    program = [
        str(binaries() / "psql"),
        url,
        "-q",
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        str(folder / "all.psql"),
    ]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)


def apply_by_api(url: str, folder: Path) -> None:
    """Apply in this process."""
    migrate.apply(url, [migrate.Folder("bench", folder)], backup=False)


def apply_by_command(url: str, folder: Path) -> None:
    """Apply by the command line, its start included."""
    program = [sys.executable, "-m", "tollbook.migrate", "apply", "--auto", "--skip-backup"]
    program += ["--dir", str(folder), "--database-url", url]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


WAYS: dict[str, Callable[[str, Path], None]] = {
    "psql, BEGIN and COMMIT per file": apply_by_psql,
    "tollbook.migrate.apply": apply_by_api,
    "tollbook migrate apply (a process)": apply_by_command,
}


def measure(server: Server, name: str, folder: Path, way: Callable[[str, Path], None]) -> float:
    """Return the seconds one way takes on a new, empty database."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        began = time.perf_counter()
        way(server.url(name), folder)
        seconds = time.perf_counter() - began
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    return seconds


def main() -> None:
    """Print medians of all ways, in turn round by round so that a slow moment hits all alike."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch, throwaway() as server:
        folder = Path(scratch) / "migrations"
        folder.mkdir()
        os.environ["TOLLBOOK_LOG_DIR"] = str(Path(scratch) / "logs")
        write_files(folder)
        for number in range(rounds + 1):  # the first round warms up and does not count
            for index, (name, way) in enumerate(WAYS.items()):
                taken = measure(server, f"bench_{number}_{index}", folder, way)
                if number:
                    seconds[name].append(taken)
    limit = statistics.median(next(iter(seconds.values())))
    print(f"{MIGRATIONS} migrations (table, index, view), median of {rounds} rounds; goal {GOAL} x psql")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<36} {median * 1000:8.1f} ms  {median / limit:5.2f} x")


if __name__ == "__main__":
    main()
