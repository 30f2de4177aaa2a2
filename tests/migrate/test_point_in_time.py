"""The page on point-in-time recovery, done as it says on a server that is killed."""

import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from fixtures.backups import ask, await_, execute
from fixtures.machines import Machine
from tollbook.embedded import binaries

PAGE = Path(__file__).parents[2] / "docs" / "point-in-time.md"
BLOCKS = re.findall(r"```(ini|sql|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_recovers_to_the_moment_before_the_mistake(machine: Machine) -> None:
    (archiving, recovering) = [machine.place(text) for kind, text in BLOCKS if kind == "ini"]
    (look,) = [text for kind, text in BLOCKS if kind == "sql"]
    (take, put) = [machine.place(text) for kind, text in BLOCKS if kind == "sh"]
    old, new = machine.root / "data" / "old", machine.root / "data" / "new"
    machine.run(
        binaries() / "initdb", "-D", old, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
    )
    with (old / "postgresql.conf").open("a") as conf:
        conf.write(archiving)
    server = machine.start(old)
    try:
        execute(machine.url, "CREATE TABLE sales AS SELECT g AS id FROM generate_series(1, 1000) AS g")
        machine.run("sh", "-e", "-c", take)
        execute(machine.url, "INSERT INTO sales VALUES (1001)")
        moment = ask(machine.url, "SELECT clock_timestamp()::text")
        execute(machine.url, "DELETE FROM sales")  # the mistake
        execute(machine.url, "SELECT pg_switch_wal()")
        waiting = "SELECT count(*) FROM pg_ls_dir('pg_wal/archive_status') AS f WHERE f LIKE '%.ready'"
        await_(lambda: ask(machine.url, waiting) == 0)
        with psycopg.connect(machine.url) as connection:
            row = connection.execute(look.encode()).fetchone()
            assert row is not None
            assert row[0] > 0
            assert row[-1] is False
    finally:
        server.kill()
        server.wait()
    for left in (machine.root / "s").iterdir():  # the killed server's socket
        left.unlink()
    machine.run("sh", "-e", "-c", put)
    with (new / "postgresql.conf").open("a") as conf:
        conf.write(recovering.replace("TIME", str(moment)))
    server = machine.start(new)
    try:
        assert ask(machine.url, "SELECT count(*) FROM sales") == 1001
    finally:
        server.terminate()
        server.wait()


def test_the_archive_command_keeps_what_is_there(machine: Machine) -> None:
    (archiving, _) = [machine.place(text) for kind, text in BLOCKS if kind == "ini"]
    match = re.search(r"archive_command = '(.*)'", archiving)
    assert match is not None
    (machine.root / "segment").write_bytes(b"one")
    command = match[1].replace("%p", "segment").replace("%f", "0001")
    archived = machine.root / "backups" / "wal" / "0001"
    machine.run("sh", "-c", command)
    assert archived.read_bytes() == b"one"
    machine.run("sh", "-c", command)  # the same again is good
    (machine.root / "segment").write_bytes(b"two")
    with pytest.raises(subprocess.CalledProcessError):
        machine.run("sh", "-c", command)
    assert archived.read_bytes() == b"one"
    assert [path.name for path in archived.parent.iterdir()] == ["0001"]
