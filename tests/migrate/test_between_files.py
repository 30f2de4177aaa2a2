"""What a session keeps beyond a transaction: a file's own goes with it to its end, and never to the next."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import Result

from tollbook.embedded import Server

Apply = Callable[..., Result]
Ask = Callable[..., Any]

OWNER = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname = '{}'"


def words(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def keeper(migrate_server: Server, ask: Ask) -> Iterator[str]:
    """A role of ours that may make tables and may not see the engine's own."""
    login = ask("SELECT session_user")
    with psycopg.connect(migrate_server.url(user="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE keeper; GRANT keeper TO {login}".encode())
        ask("GRANT ALL ON SCHEMA public TO keeper; SELECT 1")
        yield "keeper"
        ask("DROP OWNED BY keeper; SELECT 1")
        admin.execute("DROP ROLE keeper")


def test_a_temporary_table_does_not_stand_before_the_next_files_table(
    write: Any, apply: Apply, ask: Any
) -> None:
    ask("CREATE TABLE orders (i int); SELECT 1")
    write("0001_a", up="CREATE TEMP TABLE orders AS TABLE orders; PREPARE p AS SELECT 1;")
    write("0002_b", up="ALTER TABLE orders ADD COLUMN j int; PREPARE p AS SELECT 2;")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders'") == 2


def test_a_role_that_a_file_sets_lasts_to_its_end_and_no_further(
    write: Any, apply: Apply, ask: Any, keeper: str
) -> None:
    text = f"SET ROLE {keeper}; CREATE TABLE a (); COMMIT; CREATE TABLE b (); VACUUM a; "
    write("0001_a", up=f"{text}TABLE no")
    assert apply().exit_code == 1
    write("0001_a", up=f"{text}CREATE TABLE c ()")
    write("0002_b", up="CREATE TABLE d ()")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert [ask(OWNER.format(name)) for name in "abc"] == [keeper] * 3
    assert ask(OWNER.format("d")) != keeper


def test_what_fails_outside_a_transaction_under_a_role_is_told_and_recorded(
    write: Any, apply: Apply, ask: Any, keeper: str
) -> None:
    head = f"-- tollbook: role={keeper}\nCREATE TABLE a AS SELECT 1 AS i FROM generate_series(1, 2);"
    write("0001_a", up=f"{head}\nCREATE UNIQUE INDEX CONCURRENTLY ON a (i);")
    result = apply()
    assert "0001_a.up.sql:3" in words(result), words(result)
    assert ask("SELECT outcome FROM tollbook_migrate.runs") == "failed"
    ask("DELETE FROM a WHERE ctid = '(0,1)'; SELECT 1")
    assert apply().exit_code == 0


def test_what_commits_itself_is_not_tried_again_when_a_lock_is_not_had(
    write: Any, apply: Apply, ask: Any, url: str
) -> None:
    ask("CREATE TABLE counted AS SELECT 0 AS n; CREATE TABLE busy (); SELECT 1")
    write(
        "0001_a",
        up="DO $$ BEGIN UPDATE counted SET n = n + 1; COMMIT; LOCK TABLE busy; END $$",
    )
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE busy IN ACCESS SHARE MODE")
        result = apply("--lock-timeout", "50ms")
    assert result.exit_code == 1
    assert ask("SELECT n FROM counted") == 1
    assert "see that it can run again" in words(result)


def test_what_cannot_be_in_a_transaction_only_here_is_set_apart(write: Any, apply: Apply, ask: Any) -> None:
    """REINDEX and CLUSTER of a table are refused inside a transaction where the table is partitioned."""
    ask(
        "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE INDEX p_i ON p (i);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9); SELECT 1"
    )
    write("0001_a", up="CREATE TABLE a (); REINDEX TABLE p; CLUSTER p USING p_i; CREATE TABLE b ();")
    result = apply()
    assert result.exit_code == 0, words(result)
    assert ask("SELECT count(*) FROM tollbook_migrate.progress") == 0
    assert ask("SELECT to_regclass('b')::text") == "b"


def test_what_a_killed_reindex_left_on_a_partition_is_dropped(
    write: Any, apply: Apply, ask: Any, url: str, migrate_server: Server
) -> None:
    ask(
        "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE INDEX p_i ON p (i);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9);"
        "CREATE INDEX p1_i_idx_ccnew ON p1 (i); SELECT 1"
    )
    database = urlsplit(url).path[1:]
    with psycopg.connect(migrate_server.url(database, user="postgres")) as admin:
        admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'p1_i_idx_ccnew'::regclass")
    write("0001_a", up="REINDEX INDEX CONCURRENTLY p_i")
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('p1_i_idx_ccnew')") is None


@pytest.mark.parametrize(
    "text",
    [
        "SET client_encoding = 'LATIN1';\nCOMMIT;\nCREATE TABLE a AS SELECT 'é'::text AS s;",
        "SET standard_conforming_strings = off;\nCREATE TABLE a AS SELECT 'x\\n'::text AS s;",
    ],
)
def test_a_file_that_the_server_would_read_otherwise_than_we_is_refused(
    write: Any, apply: Apply, ask: Any, text: str
) -> None:
    write("0001_a", up=text)
    result = apply()
    assert result.exit_code == 1
    assert "0001_a.up.sql:1" in words(result)
    assert ask("SELECT to_regclass('a')") is None


def test_what_the_servers_own_grammar_refuses_is_named_with_its_line(
    write: Any, apply: Apply, url: str
) -> None:
    write("0001_a", up="SELECT 1;\nSELECT E'\\'';")
    result = apply(to=f"{url}&options=-c%20backslash_quote%3Doff")
    assert "0001_a.up.sql:2" in words(result), words(result)
