"""What is observed of a statement is what PostgreSQL's manual says it does: lock, rewrite, scan, rows."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tollbook.embedded import Server
from tollbook.migrate import beside
from tollbook.migrate.observation import Observer, Seen

GIVEN = """
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE t (id int PRIMARY KEY, n int, v varchar(10), p int, safe int, CHECK (safe IS NOT NULL));
CREATE INDEX t_n ON t (n);
CREATE UNIQUE INDEX t_v ON t (v);
ALTER TABLE t ADD CONSTRAINT late CHECK (n > 0) NOT VALID;
ALTER TABLE t ADD CONSTRAINT late_parent FOREIGN KEY (p) REFERENCES parent NOT VALID;
INSERT INTO t SELECT i, i, i, NULL, i FROM generate_series(1, 100) AS i;
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
CREATE TABLE parts (id int) PARTITION BY LIST (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE to_be_part (id int);
CREATE MATERIALIZED VIEW mv AS SELECT id FROM t;
CREATE UNIQUE INDEX mv_id ON mv (id);
"""
AE, E, SRE, S, SUE = "ACCESS EXCLUSIVE", "EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE", "SHARE UPDATE EXCLUSIVE"
RE, RS, AS = "ROW EXCLUSIVE", "ROW SHARE", "ACCESS SHARE"
# A statement, the lock on its table, and what else is seen: r rewritten, b an index built, s all rows read.
CASES = [
    ("ALTER TABLE t ADD COLUMN x int", AE, ""),
    ("ALTER TABLE t ADD COLUMN x int NOT NULL DEFAULT 3", AE, ""),
    ("ALTER TABLE t ADD COLUMN x timestamptz DEFAULT now()", AE, ""),
    ("ALTER TABLE t ADD COLUMN x uuid DEFAULT gen_random_uuid()", AE, "rs"),
    ("ALTER TABLE t ADD COLUMN x int GENERATED ALWAYS AS (n + 1) STORED", AE, "rs"),
    ("ALTER TABLE t ADD COLUMN x serial", AE, "rs"),
    ("ALTER TABLE t DROP COLUMN n", AE, ""),
    ("ALTER TABLE t ALTER n TYPE bigint", AE, "rs"),
    ("ALTER TABLE t ALTER v TYPE varchar(20)", AE, ""),
    ("ALTER TABLE t ALTER v TYPE text", AE, ""),
    ("ALTER TABLE t ALTER v TYPE varchar(5)", AE, "rs"),
    ("ALTER TABLE t ALTER n SET NOT NULL", AE, "s"),
    ("ALTER TABLE t ALTER safe SET NOT NULL", AE, ""),
    ("ALTER TABLE t ALTER n SET DEFAULT 1", AE, ""),
    ("ALTER TABLE t ALTER n SET STATISTICS 100", SUE, ""),
    ("ALTER TABLE t SET (fillfactor = 70)", SUE, ""),
    ("ALTER TABLE t ADD CHECK (n > 0)", AE, "s"),
    ("ALTER TABLE t ADD CHECK (n > 0) NOT VALID", AE, ""),
    ("ALTER TABLE t VALIDATE CONSTRAINT late", SUE, "s"),
    ("ALTER TABLE t ADD FOREIGN KEY (n) REFERENCES parent NOT VALID", SRE, ""),
    ("ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES parent", SRE, "s"),
    ("ALTER TABLE t VALIDATE CONSTRAINT late_parent", SUE, "s"),
    ("ALTER TABLE t ADD UNIQUE (n)", AE, "bs"),
    ("ALTER TABLE t ADD UNIQUE USING INDEX t_v", AE, ""),
    ("ALTER TABLE t DROP CONSTRAINT late", AE, ""),
    ("ALTER TABLE t RENAME COLUMN n TO m", AE, ""),
    ("ALTER TABLE t RENAME TO u", AE, ""),
    ("ALTER TABLE t SET UNLOGGED", AE, "rs"),
    ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", AE, ""),
    ("ALTER TABLE t REPLICA IDENTITY FULL", AE, ""),
    ("ALTER TABLE t DISABLE TRIGGER tr", SRE, ""),
    ("CREATE POLICY p ON t USING (n > 0)", AE, ""),
    ("CREATE TRIGGER tr2 BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()", SRE, ""),
    ("DROP TRIGGER tr ON t", AE, ""),
    ("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING", AE, ""),
    ("CREATE INDEX ON t (p)", S, "bs"),
    ("CREATE STATISTICS st ON n, p FROM t", SUE, ""),
    ("COMMENT ON TABLE t IS 'x'", SUE, ""),
    ("DROP INDEX t_n", AE, ""),
    ("REINDEX TABLE t", S, "s"),
    ("CLUSTER t USING t_n", AE, "rs"),
    ("TRUNCATE t", AE, ""),
    ("DROP TABLE t CASCADE", AE, ""),
    ("LOCK TABLE t IN EXCLUSIVE MODE", E, ""),
    ("ANALYZE t", SUE, ""),
    ("SELECT count(*) FROM t WHERE p IS NULL", AS, "s"),
    ("SELECT * FROM t WHERE n = 1 FOR UPDATE", RS, None),
    ("UPDATE t SET p = p", RE, "s"),
    ("INSERT INTO t (id, safe) VALUES (1000, 1)", RE, ""),
]


@pytest.fixture(scope="module")
def given(migrate_server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A database with the tables of GIVEN; each test leaves it as it was."""
    with psycopg.connect(migrate_server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE observed")
    with psycopg.connect(migrate_server.url("observed"), autocommit=True) as connection:
        connection.execute(GIVEN.encode())
        yield connection
    with psycopg.connect(migrate_server.url(), autocommit=True) as admin:
        beside.drop(admin, "observed")


@pytest.fixture
def see(given: psycopg.Connection[Any]) -> Iterator[Any]:
    """Run statements in a transaction that is rolled back; returns what was seen of the last."""
    given.execute("BEGIN")
    observer = Observer(given)
    observer.begin()

    def see(*statements: str) -> Seen:
        for statement in statements:
            seen = observer.look(given.execute(statement.encode()).statusmessage or "")
        return seen  # pyright: ignore[reportPossiblyUnboundVariable]

    yield see
    given.execute("ROLLBACK")


@pytest.mark.parametrize(("statement", "mode", "marks"), CASES)
def test_a_statement_takes_the_lock_and_does_the_work_that_the_manual_says(
    see: Any, statement: str, mode: str, marks: str | None
) -> None:
    seen: Seen = see(statement)
    assert {one.relation: one.mode for one in seen.locks}["public.t"] == mode
    if marks is None:
        return
    assert ("r" in marks) == any(one.what == "rewritten" for one in seen.written), seen.written
    assert ("b" in marks) == any(one.what == "built" for one in seen.written), seen.written
    assert ("s" in marks) == any(one.relation == "public.t" for one in seen.scans), seen.scans


def test_what_waits_is_said_in_words(see: Any) -> None:
    (lock,) = see("ALTER TABLE t ADD COLUMN x int").locks
    assert lock.blocks == "reads and writes wait"
    (lock,) = (one for one in see("ALTER TABLE parent SET (fillfactor = 70)").locks)
    assert "reads and writes go on" in lock.blocks


def test_the_referenced_table_is_locked_too(see: Any) -> None:
    locks = {
        one.relation: one.mode for one in see("ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES parent").locks
    }
    assert locks["public.parent"] == SRE


def test_a_rewrite_rebuilds_the_indexes(see: Any) -> None:
    written = see("ALTER TABLE t ALTER n TYPE bigint").written
    assert {one.relation for one in written if one.what == "rebuilt"} >= {"public.t_n", "public.t_pkey"}
    assert {one.of for one in written} == {"public.t"}


def test_a_truncate_empties_and_does_not_rewrite(see: Any) -> None:
    seen = see("TRUNCATE t")
    assert {one.what for one in seen.written} == {"emptied"}
    assert not seen.scans


def test_rows_are_counted_those_of_triggers_too(see: Any) -> None:
    seen = see(
        """CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO parent VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER also AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION g()""",
        "UPDATE t SET p = NULL WHERE id <= 7",
    )
    rows = {one.relation: (one.inserted, one.updated, one.deleted) for one in seen.rows}
    assert rows == {"public.t": (0, 7, 0), "public.parent": (7, 0, 0)}


def test_what_a_block_of_code_does_is_seen_as_well(see: Any) -> None:
    seen = see("DO $$ BEGIN EXECUTE 'ALTER TABLE t ALTER n TYPE bigint'; DELETE FROM t WHERE id = 1; END $$")
    assert any(one.what == "rewritten" for one in seen.written)
    assert [(one.relation, one.deleted) for one in seen.rows] == [("public.t", 1)]
    assert [one.name for one in seen.changes] == ["public.t.n"]


def test_a_lock_is_new_once_and_then_held(see: Any) -> None:
    seen = see("ALTER TABLE t ADD COLUMN x int", "ALTER TABLE parent ADD COLUMN x int")
    assert [one.relation for one in seen.locks] == ["public.parent"]
    assert [one.relation for one in seen.held] == ["public.t"]


def test_what_the_transaction_made_itself_is_in_nobodys_way(see: Any) -> None:
    seen = see("CREATE TABLE fresh (i int)", "ALTER TABLE fresh ADD COLUMN u uuid DEFAULT gen_random_uuid()")
    assert not seen.locks
    assert not seen.written
    assert not seen.scans
    assert see("CREATE INDEX ON fresh (i)").written == ()


def test_a_partition_counts_for_the_whole_table(see: Any) -> None:
    seen = see("ALTER TABLE parts ADD COLUMN u uuid DEFAULT gen_random_uuid()")
    assert [(one.relation, one.of) for one in seen.written] == [("public.parts_1", "public.parts")]


def test_attaching_a_partition_reads_it_and_lets_the_others_work(see: Any) -> None:
    seen = see("ALTER TABLE parts ATTACH PARTITION to_be_part FOR VALUES IN (2)")
    locks = {one.relation: one.mode for one in seen.locks}
    assert (locks["public.parts"], locks["public.to_be_part"]) == (SUE, AE)
    assert [one.relation for one in seen.scans] == ["public.to_be_part"]


def test_a_renamed_table_keeps_the_name_that_the_target_knows(see: Any) -> None:
    seen = see("ALTER TABLE t RENAME TO u", "ALTER TABLE u ALTER n TYPE bigint")
    assert {one.of for one in seen.written} == {"public.t"}


def test_a_dropped_tables_lock_does_not_disturb_what_comes_after(see: Any) -> None:
    seen = see("DROP TABLE to_be_part", "SELECT 1", "SELECT 2")
    assert [one.relation for one in seen.held] == ["public.to_be_part"]


def test_a_materialized_view_is_seen_to_be_refreshed(see: Any) -> None:
    plain = see("REFRESH MATERIALIZED VIEW mv")
    assert next(one.mode for one in plain.locks if one.relation == "public.mv") == AE
    assert any(one.what == "rewritten" for one in plain.written)


def test_a_statement_that_changes_nothing_is_seen_to_change_nothing(see: Any) -> None:
    seen = see("SET LOCAL work_mem = '8MB'")
    assert seen == Seen((), (), (), (), (), ())
