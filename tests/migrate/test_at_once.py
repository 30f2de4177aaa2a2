"""Plain migrations go in one round trip; whatever hinders that, they come to what they would in two."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq.abc import PGresult

from fixtures.backups import await_
from fixtures.leaving import leaving
from tollbook import migrate
from tollbook.embedded import Server
from tollbook.migrate import at_once
from tollbook.migrate.errors import StatementFailed
from tollbook.migrate.events import Event
from tollbook.migrate.exchange import send
from tollbook.migrate.execution import Prepared
from tollbook.migrate.session import Connection

Apply = Callable[..., Result]
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
PAGE_HEAD_BYTES = 64  # which the log's end passes over before anything is written behind it
RECORDED = """SELECT json_agg(json_build_array(name, promised, removed) ORDER BY id)::text
FROM tollbook_migrate.history"""
PLAIN = {
    "tables": "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);"
    "INSERT INTO t DEFAULT VALUES;",
    "a schema named": "CREATE TABLE other.t (i int); CREATE INDEX named ON other.t (i);",
    "names in quotes": 'CREATE TABLE "Odd "".name" (i int); CREATE VIEW "v\'iew" AS SELECT 1 AS one;',
    "all kinds": "CREATE SEQUENCE s; CREATE MATERIALIZED VIEW m AS SELECT 1 AS i;"
    "CREATE UNIQUE INDEX x ON m (i);",
    "parts": "CREATE TABLE p (i int) PARTITION BY LIST (i); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
    "CREATE INDEX p_i ON ONLY p (i);",
    "a column": "ALTER TABLE other.base ADD c int NOT NULL DEFAULT 1; COMMENT ON TABLE other.base IS 'x';",
    "nothing": "-- nothing at all\n",
    "a temporary table": "CREATE TEMP TABLE passing (i int); CREATE TABLE t (i int);",
    "a path that moves": "INSERT INTO other.base SELECT length(set_config('search_path', 'other', false));"
    "CREATE TABLE t (i int);",
    "a table elsewhere on the path": "CREATE INDEX base_i ON base (i);",
}


def never(one: Prepared) -> bool:
    """Take no migration for plain."""
    return False


@pytest.fixture
def both(
    url: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], tuple[Any, Any]]:
    """Run something as it is, and again, in the same database made empty, without the one round trip."""

    def run(step: Callable[[], None]) -> tuple[Any, Any]:
        found: list[Any] = []
        for way in ("at once", "in steps"):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "DROP SCHEMA IF EXISTS tollbook_migrate, other, public CASCADE; CREATE SCHEMA public;"
                    "CREATE SCHEMA other; CREATE TABLE other.base (i int)"
                )
            if way == "in steps":
                monkeypatch.setattr(at_once, "is_plain", never)
            step()
            found.append(ask(RECORDED))
        return found[0], found[1]

    return run


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_what_is_recorded_is_the_same_as_in_steps(
    text: str, both: Any, write: Any, apply: Apply, url: str
) -> None:
    write("0001_one", up=text)
    to = f"{url}&options=-csearch_path%3Dpublic,other"

    def step() -> None:
        result = apply(to=to)
        assert result.exit_code == 0, result.output

    once, in_steps = both(step)
    assert once == in_steps


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages that went to the server."""
    texts: list[str] = []

    def spy(conn: Connection, text: str, meanwhile: Callable[[], None]) -> list[PGresult]:
        texts.append(text)
        return send(conn, text, meanwhile=meanwhile)

    monkeypatch.setattr(at_once, "send", spy)
    return texts


def test_it_is_one_round_trip(
    write: Any, apply: Apply, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a migration, its BEGIN to its COMMIT, is one message; the long way is not gone at all."""
    monkeypatch.setattr("tollbook.migrate.course.carry_out", None)
    for number in range(3):
        write(f"{number + 1:04}_t", up=f"CREATE TABLE t{number} (i int); INSERT INTO t{number} VALUES (1);")
    assert apply().exit_code == 0
    assert [(text.count("BEGIN"), text.endswith("; COMMIT")) for text in sent] == [(1, True)] * 3


def write_light(write: Any, *, most: int = 5, **others: str) -> None:
    """Migrations that only make a table, an index and a view; some are others."""
    for number in range(1, most + 1):
        text = f"CREATE TABLE t{number} (i int);\nCREATE INDEX t{number}_i ON t{number} (i);\n"
        text += f"CREATE VIEW v{number} AS SELECT i FROM t{number};\n"
        write(f"{number:04}_t", up=others.get(f"n{number}", text))


def test_light_ones_share_a_message_and_are_transactions_of_their_own(
    write: Any, apply: Apply, sent: list[str], both: Any, ask: Any
) -> None:
    write_light(write, most=11, n10="CREATE TABLE a (i int); INSERT INTO a VALUES (1);")

    def step() -> None:
        assert apply().exit_code == 0

    once, in_steps = both(step)
    assert once == in_steps
    assert [text.count("BEGIN") for text in sent] == [8, 1, 1, 1]


def test_the_first_that_fails_ends_the_run_and_those_before_it_stay(
    write: Any, apply: Apply, sent: list[str], ask: Any
) -> None:
    write_light(write, n3="CREATE TABLE a (i int);\nCREATE VIEW b AS SELECT nothing FROM a;")
    result = apply()
    assert result.exit_code == 1
    assert "0003_t.up.sql:2" in result.output
    assert 'column "nothing" does not exist' in result.output
    assert len(sent) == 1, "it is not tried again"
    assert ask("SELECT array_agg(name ORDER BY id)::text FROM tollbook_migrate.history") == "{0001_t,0002_t}"
    tables = "SELECT array_agg(tablename ORDER BY 1)::text FROM pg_tables WHERE schemaname = 'public'"
    assert ask(tables) == "{t1,t2}"
    assert [line.split()[2] for line in result.output.splitlines() if line.startswith("✓ applied")] == [
        "shop/0001_t",
        "shop/0002_t",
    ]
    write_light(write)
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 5


@pytest.mark.parametrize("broken", [None, 3, 4])
def test_what_is_told_is_on_disk(
    broken: int | None, write: Any, url: str, folder: Path, migrate_server: Server, ask: Any
) -> None:
    """Where the process that writes the log by itself stands still, only a COMMIT brings it to disk.

    The ninth, which is at the server while the eight before it are told, writes nothing until they are.
    """
    ask("CREATE TABLE held (); SELECT 1")
    write_light(
        write, most=9, n9="CREATE VIEW v AS SELECT FROM held", **{f"n{broken}": "CREATE TABLE a (i nothing);"}
    )
    as_superuser(
        migrate_server, url, f'ALTER DATABASE "{conninfo_to_dict(url)["dbname"]}" SET synchronous_commit = on'
    )
    behind: list[int] = []

    def listen(event: Event) -> None:
        if event.kind == "applied":
            behind.append(ask("SELECT pg_current_wal_insert_lsn() - pg_current_wal_flush_lsn()"))
        if len(behind) == 8:
            holder.commit()

    with psycopg.connect(migrate_server.url(user="postgres")) as connection:
        found = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        (writer,) = found.fetchone() or ()
    os.kill(writer, signal.SIGSTOP)
    try:
        with psycopg.connect(url) as holder, suppress(StatementFailed):
            holder.execute("LOCK TABLE held")
            migrate.apply(url, [migrate.Folder("shop", folder)], backup=False, listen=listen)
    finally:
        os.kill(writer, signal.SIGCONT)
    assert len(behind) == (broken or 10) - 1
    assert max(behind) < PAGE_HEAD_BYTES


def test_one_that_others_are_in_the_way_of_is_tried_again_and_the_rest_follow(
    write: Any, url: str, folder: Path, ask: Any
) -> None:
    ask("CREATE TABLE held (id int PRIMARY KEY); SELECT 1")
    write_light(write, n2="CREATE TABLE a (id int REFERENCES held);")
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE held")
        listen, told = leaving(holder, "retrying")
        folders = [migrate.Folder("shop", folder)]
        migrate.apply(url, folders, backup=False, lock_timeout_seconds=0.1, listen=listen)
    assert "attempt 2 of 5" in told[0]
    assert ask("SELECT array_agg(version ORDER BY id)::text FROM tollbook_migrate.history") == "{1,2,3,4,5}"


def test_each_took_its_own_time_though_they_went_together(write: Any, apply: Apply, ask: Any) -> None:
    """To the server a message begins at one moment, however many transactions are in it."""
    write_light(write, most=8)
    assert apply().exit_code == 0
    assert ask("""SELECT bool_and(applied_at - duration >= before) FROM (SELECT applied_at, duration,
        lag(applied_at) OVER (ORDER BY id) AS before FROM tollbook_migrate.history) AS h""")


def test_interrupted_while_they_wait_the_run_ends_as_one_that_failed(
    write: Any, url: str, folder: Path, ask: Any
) -> None:
    ask("CREATE TABLE held (id int PRIMARY KEY); SELECT 1")
    write_light(write, n2="CREATE TABLE a (id int REFERENCES held);")

    def interrupt() -> None:
        await_(lambda: ask(WAITING))
        os.kill(os.getpid(), signal.SIGINT)

    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE held")
        sender = threading.Thread(target=interrupt)
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            migrate.apply(url, [migrate.Folder("shop", folder)], backup=False, lock_timeout_seconds=60)
        sender.join()
    assert ask("SELECT outcome FROM tollbook_migrate.runs") == "failed"


def as_superuser(server: Server, url: str, sql: str) -> None:
    with psycopg.connect(server.url(str(conninfo_to_dict(url)["dbname"]), user="postgres")) as connection:
        connection.execute(sql.encode())


def meddle(server: Server, url: str, tag: str, body: str) -> None:
    """Run a body at the end of each such command of a migration."""
    as_superuser(
        server,
        url,
        f"""CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
        CREATE EVENT TRIGGER meddling ON ddl_command_end WHEN TAG IN ('{tag}') EXECUTE FUNCTION meddle()""",
    )


def test_who_cancels_one_of_them_ends_the_run(
    write: Any, apply: Apply, migrate_server: Server, url: str, sent: list[str], ask: Any
) -> None:
    cancel = "IF to_regclass('t3') IS NOT NULL THEN PERFORM pg_cancel_backend(pg_backend_pid()); END IF;"
    meddle(migrate_server, url, "CREATE TABLE", cancel)
    write_light(write)
    result = apply()
    assert result.exit_code == 1
    assert "0003_t.up.sql:1" in result.output
    assert "canceling statement due to user request" in result.output
    assert len(sent) == 1
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 2


@pytest.mark.parametrize("at", range(1, 6))
def test_cut_off_in_one_of_them_the_next_run_goes_on_behind_the_last_that_is_whole(
    at: int, write: Any, apply: Apply, migrate_server: Server, url: str, ask: Any
) -> None:
    cut = (
        f"IF to_regclass('t{at}_i') IS NOT NULL THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;"
    )
    meddle(migrate_server, url, "CREATE VIEW", cut)
    write_light(write)
    result = apply()
    assert result.exit_code == 1
    assert "terminating connection due to administrator command" in " ".join(result.output.split())
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == at - 1
    assert ask(f"SELECT to_regclass('t{at}')") is None
    as_superuser(migrate_server, url, "DROP EVENT TRIGGER meddling")
    result = apply()
    assert result.exit_code == 0, result.output
    assert "left no trace; applying it now" in result.output
    assert ask("SELECT array_agg(version ORDER BY id)::text FROM tollbook_migrate.history") == "{1,2,3,4,5}"


def test_killed_while_they_are_at_the_server_the_next_run_does_none_twice(
    write: Any, apply: Apply, migrate_server: Server, url: str, folder: Path, ask: Any
) -> None:
    stand_still = "IF to_regclass('t3') IS NOT NULL THEN PERFORM pg_advisory_xact_lock(3); END IF;"
    meddle(migrate_server, url, "CREATE VIEW", stand_still)
    write_light(write)
    command = [sys.executable, "-m", "tollbook.migrate", "apply", "--dir", str(folder), "--auto"]
    with (
        psycopg.connect(url) as holder,
        subprocess.Popen(
            [*command, "--skip-backup", "--database-url", url], stdout=subprocess.DEVNULL
        ) as killed,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(3)")
        await_(lambda: killed.poll() is not None or ask(WAITING))
        assert ask("SELECT count(*) FROM tollbook_migrate.history") == 2
        killed.kill()
    result = apply()
    assert result.exit_code == 0, result.output
    assert "was interrupted" in result.output
    assert ask("SELECT array_agg(version ORDER BY id)::text FROM tollbook_migrate.history") == "{1,2,3,4,5}"


@pytest.mark.parametrize("light", [1, 3])
def test_what_is_not_there_in_the_end_is_told_and_nothing_stays(
    light: int, write: Any, apply: Apply, migrate_server: Server, url: str, ask: Any
) -> None:
    rename = f"IF to_regclass('t{light}') IS NOT NULL THEN ALTER TABLE t{light} RENAME TO u; END IF;"
    meddle(migrate_server, url, "CREATE TABLE", rename)
    for number in range(1, 4):
        write(f"000{number}_t", up=f"CREATE TABLE t{number} (i int);")
    result = apply()
    assert result.exit_code == 4
    said = f"000{light}_t ran, but not everything it promises is there: the table t{light} is missing"
    assert said in result.output
    assert ask("SELECT to_regclass('u')") is None
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == light - 1


def test_a_schema_of_the_users_own_name_changes_where_later_files_make_their_tables(
    both: Any, write: Any, apply: Apply, ask: Any
) -> None:
    user = ask("SELECT current_user")
    write("0001_before", up="CREATE TABLE a (i int);")
    write("0002_schema", up=f'CREATE SCHEMA "{user}";')
    write("0003_after", up="CREATE TABLE b (i int);")
    write("0004_more", up="CREATE INDEX b_i ON b (i);")

    def step() -> None:
        ask(f'DROP SCHEMA IF EXISTS "{user}" CASCADE; SELECT 1')
        result = apply()
        assert result.exit_code == 0, result.output

    once, in_steps = both(step)
    assert once == in_steps
    assert ask("SELECT schemaname FROM pg_tables WHERE tablename = 'b'") == user


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (
            "CREATE TABLE a (i int);\nCREATE INDEX a_i ON a (nothing);",
            "2",
            'column "nothing" does not exist',
        ),
        ("CREATE TABLE a (i int PRIMARY KEY);\nINSERT INTO a VALUES (1), (1);", "2", "duplicate key"),
        ("INSERT INTO tollbook_migrate.runs DEFAULT VALUES;", "1", "null value"),
    ],
)
def test_an_error_is_told_with_its_place(
    text: str, line: str, said: str, write: Any, apply: Apply, ask: Any
) -> None:
    write("0001_a", up=text)
    result = apply()
    assert result.exit_code == 1
    assert f"0001_a.up.sql:{line}" in result.output
    assert said in result.output
    assert ask("SELECT to_regclass('a')") is None
