"""What a file promises and what it may not hold."""

from pathlib import Path

import pytest

from tollbook.migrate import presence, promises, statements
from tollbook.migrate.files import Script


def script(text: str) -> Script:
    return Script(Path("0001_a.up.sql"), text, "")


def made(text: str) -> list[str]:
    reading = statements.read(script(text))
    assert not reading.problems
    return [f"{promise.kind} {promise}" for promise in promises.collect(reading.statements).made]


def problems(text: str) -> list[str]:
    return [str(problem) for problem in statements.read(script(text)).problems]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CREATE TABLE a.b (i int)", ["table a.b"]),
        ("CREATE TABLE IF NOT EXISTS b (i int); CREATE TABLE IF NOT EXISTS b (i int)", ["table b"]),
        (
            "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p DEFAULT",
            ["table p"],
        ),
        ("CREATE TEMP TABLE t (i int)", []),
        ("CREATE TEMP TABLE t (i int); CREATE INDEX i ON t (i)", []),
        ("CREATE TABLE t AS SELECT 1 AS i", ["table t"]),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", ["view v"]),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1", ["materialized view m"]),
        ("CREATE TYPE a.e AS ENUM ('x'); CREATE DOMAIN d AS int", ["type a.e", "type d"]),
        ("CREATE SEQUENCE s", ["sequence s"]),
        ("CREATE SCHEMA s CREATE TABLE t (i int)", ["schema s", "table s.t"]),
        ("CREATE EXTENSION IF NOT EXISTS pgcrypto", ["extension pgcrypto"]),
        ("CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION f()", ["trigger g on t"]),
        ("CREATE TABLE t (i int UNIQUE); CREATE INDEX i ON t (i)", ["table t", "index i"]),
        ("CREATE TABLE t (i int); DROP TABLE t", []),
        ("CREATE TABLE t (i int); CREATE INDEX i ON t (i); DROP TABLE t", []),
        ("CREATE SCHEMA s; CREATE TABLE s.t (i int); DROP SCHEMA s CASCADE", []),
        ("DROP TABLE IF EXISTS t; CREATE TABLE t (i int)", ["table t"]),
        ("CREATE TABLE t (i int); ALTER TABLE t RENAME TO u", ["table u"]),
        ("SET search_path = a, b; CREATE TABLE t (i int)", ["table a.t"]),
        (
            "CREATE UNIQUE INDEX i ON t (i); ALTER TABLE t ADD CONSTRAINT p UNIQUE USING INDEX i",
            ["index p"],
        ),
        ("ALTER TABLE a.t ADD PRIMARY KEY USING INDEX i", ["index a.i"]),
        (
            "CREATE INDEX i ON t (i); ALTER TABLE t ADD CONSTRAINT p UNIQUE USING INDEX i;"
            "ALTER TABLE t RENAME CONSTRAINT p TO q",
            ["index q"],
        ),
        ("CREATE VIEW v AS SELECT 1; ALTER TABLE v RENAME TO w", ["view w"]),
        ("CREATE SEQUENCE v; ALTER TABLE v SET SCHEMA s", ["sequence s.v"]),
        ("CREATE INDEX i ON t (i); ALTER TABLE i RENAME TO j", ["index j"]),
        (
            "CREATE SCHEMA a; CREATE TABLE a.t (); CREATE INDEX i ON a.t (o); ALTER SCHEMA a RENAME TO b",
            ["table b.t", "index b.i", "schema b"],
        ),
    ],
)
def test_a_file_promises_what_it_creates_and_does_not_drop_again(text: str, wanted: list[str]) -> None:
    assert made(text) == wanted


@pytest.mark.parametrize(
    "later",
    [
        "ALTER TABLE t DROP COLUMN i",
        "ALTER TABLE t DROP CONSTRAINT c CASCADE",
        "DROP FUNCTION f CASCADE",
        "ALTER INDEX u_pkey RENAME TO x; DROP TABLE u",
        "DROP OWNED BY me",
        "SET search_path = s",
    ],
)
def test_what_a_later_statement_may_take_unseen_need_not_be_there(later: str) -> None:
    index = "" if "RENAME" in later else "CREATE INDEX x ON t (i); "
    (one,) = promises.collect(statements.read(script(f"{index}{later}")).statements).made
    assert one.loose
    verdict = presence.judge([one], presence.Presence(), ["public"])
    assert verdict.wrong == ()
    assert verdict.missing == (one,)


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE IF EXISTS x RENAME TO y",
        "ALTER TABLE x SET SCHEMA s",
        "ALTER TABLE t ADD CONSTRAINT x UNIQUE USING INDEX i",
        "CREATE INDEX ON t (i); DROP INDEX t_i_idx",
        "CREATE TEMP TABLE x (i int); CREATE VIEW v AS SELECT * FROM x",
    ],
)
def test_what_the_words_alone_do_not_say_need_not_be_there(text: str) -> None:
    (one,) = promises.collect(statements.read(script(text)).statements).made
    assert one.loose


def test_what_no_later_statement_can_take_must_be_there() -> None:
    text = "CREATE INDEX x ON t (i); ALTER TABLE u DROP COLUMN i; DROP TABLE u; DO $$ BEGIN END $$"
    (one,) = promises.collect(statements.read(script(text)).statements).made
    assert presence.judge([one], presence.Presence(), ["public"]).wrong == ("the index x is missing",)


def test_functions_of_one_name_are_told_apart_by_their_arguments() -> None:
    body = "RETURNS int LANGUAGE sql AS 'SELECT 1'"
    text = f"CREATE FUNCTION f() {body}; CREATE FUNCTION f(i int) {body}; DROP FUNCTION f(int)"
    assert made(text) == ["function f()"]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("ROLLBACK", "ROLLBACK"),
        ("PREPARE TRANSACTION 'p'", "PREPARE"),
        ("DISCARD ALL", "DISCARD"),
        ("COPY t FROM STDIN", "COPY"),
        ("COPY t TO STDOUT", "COPY"),
        ("\\i other.sql", "psql"),
        ("\\connect other", "psql"),
        ("SELECT 1 \\gexec", "psql"),
        ("SELECT :'name'", "psql"),
    ],
)
def test_what_cannot_stand_in_a_migration_is_named_with_its_line(statement: str, name: str) -> None:
    problem = problems(f"-- words\nSELECT 1;\n\n{statement};\n")[0]
    assert name in problem
    assert "0001_a.up.sql:4" in problem


def test_all_of_a_files_offences_are_named_at_once() -> None:
    assert len(problems("BEGIN;\nSELECT 1;\nVACUUM;\nCOMMIT; ROLLBACK; DISCARD ALL")) == 3


def test_words_that_only_look_dangerous_are_let_through() -> None:
    text = """
        SELECT 'BEGIN; COMMIT; \\d', $$ VACUUM; $$; -- COMMIT;
        SAVEPOINT s; ROLLBACK TO s; RELEASE s; ANALYZE;
        CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
    """
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("SELECT 1;\n\ufeffSELECT 2", "U+FEFF, zero width no-break space): take it out"),
        ("SELECT 1;\u00a0\n", "U+00A0"),
        ("CREATE TABLE t (i int);\nGO\n", "the client of SQL Server"),
        ("CREATE TABLE t (i int AUTO_INCREMENT)", "MySQL's"),
    ],
)
def test_what_is_no_sql_of_postgresqls_is_said_to_be_whose_it_is(text: str, advice: str) -> None:
    (problem,) = problems(text)
    assert advice in problem


def test_a_syntax_error_has_file_line_column_and_a_caret() -> None:
    reading = statements.read(script("SELECT 'é';\n  CREAT TABLE t ();"))
    (problem,) = reading.problems
    assert problem.place
    assert (problem.place.line, problem.place.column) == (2, 3)
    assert problem.place.excerpt == "  CREAT TABLE t ();\n  ^"


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("ALTER TABLE t ADD COLUMN i int, ALTER COLUMN j SET NOT NULL", False),
        ("ALTER TABLE t ADD CHECK (i > 0) NOT VALID; ALTER TABLE t VALIDATE CONSTRAINT c", False),
        ("ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX i", True),
        ("ALTER TABLE t DROP COLUMN i", True),
        ("ALTER TABLE t ADD COLUMN i int, DROP CONSTRAINT c", True),
        ("DO 'BEGIN END'", True),
    ],
)
def test_what_takes_nothing_away_is_told_from_what_may(text: str, may: bool) -> None:
    assert promises.collect(statements.read(script(text)).statements).may_remove is may
