"""What the engine costs, side by side with other tools and with psql, which is the limit.

    python bench/migrate.py [ROUNDS]

Every tool applies the same small migrations (a table, an index, a view) to an empty database, then finds
nothing to do, then just starts. Medians of the rounds, each in a random order. A tool that is not installed
(build/bench, or the PATH) is named and left out.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tollbook import migrate
from tollbook.embedded import Server, binaries, throwaway

SIZES = (10, 100, 1000)
ROUNDS = 5
GOAL_APPLY = 1.2  # times psql, at the largest size
GOAL_NOTHING_SECONDS = 0.3
GOAL_HELP_SECONDS = 0.15
TOOLS = Path(__file__).parent.parent / "build" / "bench" / "bin"
ALEMBIC_ENV = """from alembic import context
from sqlalchemy import create_engine
with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""


def statements(number: int) -> tuple[str, ...]:
    """Return what one small migration does."""
    return (
        f"CREATE TABLE t{number} (id bigint PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL)",
        f"CREATE INDEX t{number}_at ON t{number} (at)",
        f"CREATE VIEW v{number} AS SELECT id, name FROM t{number}",
    )


def text(number: int) -> str:
    """Return it as a file."""
    return ";\n".join(statements(number)) + ";\n"


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to apply: how it wants its files, and the commands that apply them and that just start."""

    name: str
    program: str
    write: Callable[[Path, int], None]
    command: Callable[[str, Path], Sequence[str]]
    start: Sequence[str] = ()
    variables: Callable[[str], dict[str, str]] = lambda url: {}

    def find(self) -> str | None:
        """Return the program, None where it is not installed."""
        return shutil.which(self.program, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")


def write_plain(folder: Path, size: int) -> None:
    """NNNN_name.up.sql, and a script for psql that runs them all."""
    for number in range(1, size + 1):
        (folder / f"{number:05}_t{number}.up.sql").write_text(text(number))
    lines = [f"BEGIN;\n\\i {path}\nCOMMIT;\n" for path in sorted(folder.glob("*.up.sql"))]
    (folder / "all.psql").write_text("".join(lines))


def write_dbmate(folder: Path, size: int) -> None:
    """dbmate's blocks."""
    for number in range(1, size + 1):
        path = folder / f"{20240101000000 + number}_t{number}.sql"
        path.write_text(f"-- migrate:up\n{text(number)}\n-- migrate:down\n")


def write_alembic(folder: Path, size: int) -> None:
    """A chain of revisions, each a program of op.execute calls."""
    (folder / "versions").mkdir()
    (folder / "env.py").write_text(ALEMBIC_ENV)
    (folder / "script.py.mako").write_text("")
    for number in range(1, size + 1):
        before = repr(f"r{number - 1}") if number > 1 else "None"
        lines = "".join(f"    op.execute({one!r})\n" for one in statements(number))
        (folder / "versions" / f"r{number}.py").write_text(
            f"from alembic import op\nrevision = 'r{number}'\ndown_revision = {before}\n"
            f"def upgrade():\n{lines}\ndef downgrade():\n    pass\n"
        )


def write_yoyo(folder: Path, size: int) -> None:
    """Plain files, each naming the one before."""
    for number in range(1, size + 1):
        head = f"-- depends: {number - 1:05}_t{number - 1}\n" if number > 1 else ""
        (folder / f"{number:05}_t{number}.sql").write_text(head + text(number))


def write_sqitch(folder: Path, size: int) -> None:
    """A plan and its scripts."""
    (folder / "sqitch.conf").write_text("[core]\n\tengine = pg\n")
    (folder / "deploy").mkdir()
    lines = ["%syntax-version=1.0.0", "%project=bench", ""]
    for number in range(1, size + 1):
        lines.append(f"t{number} 2024-01-01T00:00:00Z B <b@example.com> # t")
        (folder / "deploy" / f"t{number}.sql").write_text(f"BEGIN;\n{text(number)}COMMIT;\n")
    (folder / "sqitch.plan").write_text("\n".join(lines) + "\n")


def write_prisma(folder: Path, size: int) -> None:
    """A folder a migration."""
    schema = 'datasource db {\n  provider = "postgresql"\n  url = env("DATABASE_URL")\n}\n'
    (folder / "schema.prisma").write_text(schema)
    for number in range(1, size + 1):
        path = folder / "migrations" / f"{20240101000000 + number}_t{number}"
        path.mkdir(parents=True)
        (path / "migration.sql").write_text(text(number))
    (folder / "migrations" / "migration_lock.toml").write_text('provider = "postgresql"\n')


def by_tollbook(url: str, folder: Path) -> Sequence[str]:
    """Return our own command."""
    program = (sys.executable, "-m", "tollbook.migrate", "apply", "--auto", "--skip-backup")
    return (*program, "--dir", f"bench={folder}", "--database-url", url)


def by_psql(url: str, folder: Path) -> Sequence[str]:
    """Return the limit: one psql, BEGIN and COMMIT around each file."""
    return (str(binaries() / "psql"), url, "-qX", "-v", "ON_ERROR_STOP=1", "-f", str(folder / "all.psql"))


def by_alembic(url: str, folder: Path) -> Sequence[str]:
    """Return Alembic's command; its settings name the database."""
    address = url.replace("postgresql://", "postgresql+psycopg://")
    lines = ("[alembic]", f"script_location = {folder}", f"sqlalchemy.url = {address}".replace("%", "%%"))
    (folder / "alembic.ini").write_text("\n".join(lines))
    return ("alembic", "-c", str(folder / "alembic.ini"), "upgrade", "head")


def by_dbmate(url: str, folder: Path) -> Sequence[str]:
    """Return dbmate's command."""
    return ("dbmate", "--url", url, "--migrations-dir", str(folder), "--no-dump-schema", "--wait", "migrate")


PSQL = Tool("psql, BEGIN and COMMIT per file", str(binaries() / "psql"), write_plain, by_psql)
WAYS = (
    PSQL,
    Tool(
        "tollbook migrate apply",
        sys.executable,
        write_plain,
        by_tollbook,
        (sys.executable, "-m", "tollbook.migrate", "--help"),
    ),
    Tool("dbmate", "dbmate", write_dbmate, by_dbmate, ("dbmate", "--help")),
    Tool("Alembic", "alembic", write_alembic, by_alembic, ("alembic", "--help")),
    Tool(
        "yoyo",
        "yoyo",
        write_yoyo,
        lambda url, folder: (
            *("yoyo", "apply", "--batch", "--no-config-file"),
            *("--database", url.replace("postgresql://", "postgresql+psycopg://"), str(folder)),
        ),
        ("yoyo", "--help"),
    ),
    Tool(
        "Prisma",
        "prisma",
        write_prisma,
        lambda url, folder: ("prisma", "migrate", "deploy", "--schema", str(folder / "schema.prisma")),
        ("prisma", "--help"),
        lambda url: {"DATABASE_URL": url},
    ),
    Tool(
        "Sqitch",
        "sqitch",
        write_sqitch,
        lambda url, folder: (
            "sqitch",
            "--chdir",
            str(folder),
            "deploy",
            url.replace("postgresql", "db:pg", 1),
        ),
        ("sqitch", "--version"),
    ),
)


def run(command: Sequence[str], variables: dict[str, str]) -> tuple[float, int]:
    """Run a command; return its seconds and its greatest memory in KiB. Raises RuntimeError."""
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}", **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled once, not at each start
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command[0]} failed: {said.read().decode(errors='replace')[-600:]}")
    return seconds, usage.ru_maxrss


@contextmanager
def database(server: Server, name: str) -> Generator[str]:
    """Give the address of a new, empty database."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield server.url(name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def measure(server: Server, tools: Sequence[Tool], size: int, rounds: int, scratch: Path) -> None:
    """Print what applying `size` migrations costs each tool, and then finding nothing to do."""
    apply: dict[str, list[float]] = {tool.name: [] for tool in tools}
    nothing: dict[str, list[float]] = {tool.name: [] for tool in tools if tool is not PSQL}
    memory: dict[str, int] = {}
    for number in range(rounds):
        # A disk is faster after a slow tool, and at first: so nobody has a place of his own.
        order = random.sample(tools, len(tools))
        for place, tool in enumerate(order):
            folder = scratch / f"{size}_{number}_{place}"
            folder.mkdir()
            tool.write(folder, size)
            with database(server, f"bench_{size}_{number}_{place}") as url:
                command = tool.command(url, folder)
                seconds, most = run(command, tool.variables(url))
                apply[tool.name].append(seconds)
                memory[tool.name] = max(memory.get(tool.name, 0), most)
                if tool is not PSQL:
                    nothing[tool.name].append(run(command, tool.variables(url))[0])
    limit = statistics.median(apply[PSQL.name])
    print(f"\n{size} migrations, median of {rounds}: apply | times psql | then nothing to do | peak memory")
    for tool in tools:
        median = statistics.median(apply[tool.name])
        idle = f"{statistics.median(nothing[tool.name]):6.2f} s" if tool.name in nothing else "        "
        most = memory[tool.name] / 1024
        print(f"  {tool.name:<32} {median:7.2f} s {median / limit:6.2f} x {idle} {most:6.0f} MiB")


def measure_start(tools: Sequence[Tool], rounds: int) -> None:
    """Print how long each tool takes to say how it is used."""
    print(f"\nstart-up (--help), median of {rounds}; goal {GOAL_HELP_SECONDS} s")
    for tool in tools:
        if tool.start:
            print(
                f"  {tool.name:<32} {statistics.median(run(tool.start, {})[0] for _ in range(rounds)):7.3f} s"
            )


def measure_in_process(server: Server, rounds: int, scratch: Path) -> None:
    """Print what the library call costs without the start of a process."""
    folder = scratch / "in_process"
    folder.mkdir()
    write_plain(folder, SIZES[-1])
    seconds: list[float] = []
    for number in range(rounds):
        with database(server, f"bench_in_process_{number}") as url:
            began = time.perf_counter()
            migrate.apply(url, [migrate.Folder("bench", folder)], backup=False)
            seconds.append(time.perf_counter() - began)
    print(f"\ntollbook.migrate.apply in process, {SIZES[-1]} migrations: {statistics.median(seconds):.2f} s")


def main() -> None:
    """Print all figures; goals are in the heads of the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    tools = [tool for tool in WAYS if tool.find()]
    print(f"goals: apply {GOAL_APPLY} x psql at {SIZES[-1]}, nothing to do {GOAL_NOTHING_SECONDS} s")
    for tool in WAYS:
        if tool not in tools:
            print(f"not installed, left out: {tool.name}")
    # A vacuum of the server's own would disturb one tool and not the next, and keep a database from going.
    settings = {"autovacuum": "off"}
    with tempfile.TemporaryDirectory() as scratch, throwaway(settings=settings) as server:
        print(f"server and files: {scratch} (TMPDIR says where; psql's own time is mostly that of its disk)")
        os.environ["TOLLBOOK_LOG_DIR"] = str(Path(scratch) / "logs")
        for size in SIZES:
            measure(server, tools, size, rounds, Path(scratch))
        measure_in_process(server, rounds, Path(scratch))
    measure_start(tools, rounds)


if __name__ == "__main__":
    main()
