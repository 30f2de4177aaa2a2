"""Plain migrations go in one round trip; whatever hinders that, they come to what they would in two."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import Result
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq.abc import PGresult

from tollbook.embedded import Server
from tollbook.migrate import at_once
from tollbook.migrate.exchange import send
from tollbook.migrate.execution import Prepared
from tollbook.migrate.session import Connection

Apply = Callable[..., Result]
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


def test_it_is_one_round_trip(write: Any, apply: Apply, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a migration, its BEGIN to its COMMIT, is one message; the long way is not gone at all."""
    sent: list[str] = []

    def spy(conn: Connection, text: str, meanwhile: Callable[[], None]) -> list[PGresult]:
        sent.append(text)
        return send(conn, text, meanwhile=meanwhile)

    monkeypatch.setattr(at_once, "send", spy)
    monkeypatch.setattr("tollbook.migrate.course.carry_out", None)
    for number in range(3):
        write(f"{number + 1:04}_t", up=f"CREATE TABLE t{number} (i int);")
    assert apply().exit_code == 0
    assert [text.endswith("; COMMIT") for text in sent] == [True] * 3


def test_what_is_not_there_in_the_end_is_told_and_nothing_stays(
    write: Any, apply: Apply, migrate_server: Server, url: str, ask: Any
) -> None:
    superuser = migrate_server.url(str(conninfo_to_dict(url)["dbname"]), user="postgres")
    with psycopg.connect(superuser) as c:
        c.execute(
            """CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql
            AS $$ BEGIN IF to_regclass('t') IS NOT NULL THEN ALTER TABLE t RENAME TO u; END IF; END $$;
            CREATE EVENT TRIGGER meddling ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
            EXECUTE FUNCTION meddle()"""
        )
    write("0001_t", up="CREATE TABLE t (i int);")
    result = apply()
    assert result.exit_code == 4
    assert "0001_t ran, but not everything it promises is there: the table t is missing" in result.output
    assert ask("SELECT to_regclass('u')") is None
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 0


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
