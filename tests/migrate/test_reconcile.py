"""The SQL that a drift prints is run, and then nothing differs any more."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollbook.embedded import Server
from tollbook.migrate import catalog, drift
from tollbook.migrate.events import ignore
from tollbook.migrate.preflight import Standing
from tollbook.migrate.reconcile import Side, reconcile
from tollbook.migrate.replay import Stage
from tollbook.migrate.session import Connection, connected

SCHEMA = """
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('good', 'bad');
CREATE TYPE shop.pair AS (a int, b text);
CREATE DOMAIN shop.positive AS int DEFAULT 1 NOT NULL CONSTRAINT above CHECK (VALUE > 0);
CREATE SEQUENCE shop.numbers START 10;
CREATE FUNCTION shop.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * n';
CREATE FUNCTION shop.cheer(m shop.mood) RETURNS text LANGUAGE sql AS 'SELECT ''be '' || m';
REVOKE EXECUTE ON FUNCTION shop.cheer FROM PUBLIC; COMMENT ON FUNCTION shop.cheer IS 'loud';
CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE shop.people (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, age shop.positive,
    mood shop.mood DEFAULT 'good', doubled int GENERATED ALWAYS AS (shop.twice(3)) STORED);
CREATE TABLE shop.orders (
    id serial PRIMARY KEY, person bigint REFERENCES shop.people, number int DEFAULT nextval('shop.numbers'),
    total numeric(10, 2) NOT NULL DEFAULT 0 CHECK (total >= 0), placed timestamptz DEFAULT now());
CREATE INDEX orders_person ON shop.orders (person) WHERE total > 0;
CREATE STATISTICS shop.orders_both ON person, number FROM shop.orders;
CREATE VIEW shop.totals AS SELECT person, sum(total) AS total FROM shop.orders GROUP BY person;
CREATE VIEW shop.rich WITH (security_invoker=true) AS SELECT * FROM shop.totals WHERE total > 100;
CREATE MATERIALIZED VIEW shop.kept AS SELECT person, total FROM shop.totals;
CREATE UNIQUE INDEX kept_person ON shop.kept (person);
CREATE TRIGGER orders_touch BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touch();
ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.orders FOR SELECT TO PUBLIC USING (person > 0);
CREATE TABLE shop.events (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE INDEX events_what ON shop.events (what);
CREATE TABLE shop.events_old PARTITION OF shop.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
GRANT SELECT ON shop.orders TO tollbook; GRANT UPDATE (total) ON shop.orders TO tollbook;
REVOKE EXECUTE ON FUNCTION shop.twice(int) FROM PUBLIC;
COMMENT ON TABLE shop.orders IS 'what was bought'; COMMENT ON COLUMN shop.orders.total IS 'in euros';
COMMENT ON SCHEMA shop IS 'all of it'; COMMENT ON TRIGGER orders_touch ON shop.orders IS 'touched';
COMMENT ON CONSTRAINT orders_total_check ON shop.orders IS 'no debts';
ALTER TABLE shop.people OWNER TO tollbook; ALTER FUNCTION shop.cheer OWNER TO tollbook;
ALTER INDEX shop.people_pkey SET (fillfactor=80); ALTER TABLE shop.people SET (toast.autovacuum_enabled=off);
ALTER TABLE shop.people ALTER name SET STORAGE EXTERNAL, ALTER name SET STATISTICS 500;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO tollbook;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
COMMENT ON VIEW shop.totals IS 'by person'; COMMENT ON FUNCTION shop.twice(int) IS 'n + n';
"""
# What hands do to a database at night. Where one of them takes away what another needs, that one fails.
DEEDS = """
DROP TABLE shop.orders CASCADE
DROP TABLE shop.people CASCADE
DROP TABLE shop.events
DROP SCHEMA shop CASCADE
DROP VIEW shop.rich
DROP VIEW shop.totals CASCADE
DROP MATERIALIZED VIEW shop.kept
DROP INDEX shop.orders_person
DROP INDEX shop.events_what
DROP FUNCTION shop.touch() CASCADE
DROP FUNCTION shop.twice(int) CASCADE
DROP TYPE shop.pair
DROP TYPE shop.mood CASCADE
DROP DOMAIN shop.positive CASCADE
DROP SEQUENCE shop.numbers CASCADE
DROP STATISTICS shop.orders_both
DROP TRIGGER orders_touch ON shop.orders
DROP POLICY own ON shop.orders
ALTER TABLE shop.orders DISABLE TRIGGER orders_touch
ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY
ALTER TABLE shop.orders FORCE ROW LEVEL SECURITY
ALTER TABLE shop.orders SET (fillfactor=70)
ALTER TABLE shop.orders DROP COLUMN placed
ALTER TABLE shop.orders DROP COLUMN total CASCADE
ALTER TABLE shop.orders ALTER total DROP DEFAULT
ALTER TABLE shop.orders ALTER total DROP NOT NULL
ALTER TABLE shop.orders ALTER number SET NOT NULL
ALTER TABLE shop.orders ALTER number SET DEFAULT 7
ALTER TABLE shop.orders ALTER number TYPE text
ALTER TABLE shop.orders ALTER placed TYPE date
ALTER TABLE shop.orders ADD extra int
ALTER TABLE shop.orders ADD CONSTRAINT more CHECK (number > 0) NOT VALID
ALTER TABLE shop.orders DROP CONSTRAINT orders_total_check
ALTER TABLE shop.orders DROP CONSTRAINT orders_total_check, ADD CONSTRAINT orders_total_check CHECK (id > 1)
ALTER TABLE shop.orders RENAME CONSTRAINT orders_total_check TO orders_total_check7
ALTER TABLE shop.orders DROP CONSTRAINT orders_person_fkey
ALTER TABLE shop.people DROP CONSTRAINT people_pkey CASCADE
ALTER TABLE shop.people ALTER id SET GENERATED BY DEFAULT
ALTER TABLE shop.people ALTER id DROP IDENTITY
ALTER TABLE shop.people RENAME name TO title
ALTER TYPE shop.pair ADD ATTRIBUTE c int
ALTER TYPE shop.mood ADD VALUE 'so so' BEFORE 'bad'
ALTER DOMAIN shop.positive DROP CONSTRAINT above
ALTER DOMAIN shop.positive DROP NOT NULL
ALTER SEQUENCE shop.numbers INCREMENT 5
CREATE OR REPLACE FUNCTION shop.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n + n'
CREATE OR REPLACE VIEW shop.totals AS SELECT person, sum(total) total FROM shop.orders WHERE id > 0 GROUP BY 1
CREATE TABLE shop.more (id int PRIMARY KEY REFERENCES shop.people, mood shop.mood)
CREATE VIEW shop.seen AS SELECT total FROM shop.totals
CREATE INDEX orders_placed ON shop.orders (placed)
CREATE FUNCTION shop.thrice(n int) RETURNS int LANGUAGE sql AS 'SELECT 3 * n'
CREATE POLICY all_of_them ON shop.people USING (true)
CREATE TRIGGER people_touch BEFORE UPDATE ON shop.people FOR EACH ROW EXECUTE FUNCTION shop.touch()
CREATE TABLE shop.events_new PARTITION OF shop.events FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')
GRANT DELETE ON shop.orders TO tollbook
GRANT SELECT ON shop.people TO PUBLIC
REVOKE SELECT ON shop.orders FROM tollbook
REVOKE UPDATE (total) ON shop.orders FROM tollbook
GRANT EXECUTE ON FUNCTION shop.twice(int) TO PUBLIC
COMMENT ON TABLE shop.orders IS 'other words'
COMMENT ON COLUMN shop.orders.total IS NULL
COMMENT ON TABLE shop.people IS 'who'
COMMENT ON SCHEMA shop IS NULL
COMMENT ON POLICY own ON shop.orders IS 'mine'
ALTER TABLE shop.people OWNER TO postgres
ALTER FUNCTION shop.cheer OWNER TO postgres
ALTER TABLE shop.orders OWNER TO tollbook
ALTER TABLE shop.orders DISABLE TRIGGER ALL
ALTER TABLE shop.people DISABLE TRIGGER ALL
ALTER INDEX shop.people_pkey RESET (fillfactor)
ALTER INDEX shop.people_pkey SET (fillfactor=70)
ALTER INDEX shop.people_name_key SET (fillfactor=50)
ALTER TABLE shop.people RESET (toast.autovacuum_enabled)
ALTER TABLE shop.people ALTER name SET STORAGE MAIN
ALTER TABLE shop.people ALTER name SET STATISTICS -1, ALTER name SET (n_distinct=5)
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT DELETE ON TABLES TO tollbook WITH GRANT OPTION
ALTER DEFAULT PRIVILEGES IN SCHEMA shop REVOKE SELECT ON TABLES FROM tollbook
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC
ALTER DEFAULT PRIVILEGES FOR ROLE tollbook GRANT SELECT ON TABLES TO PUBLIC
""".strip().splitlines()
NOTHING = Standing((), (), (), (), (), ())
# Columns that were dropped come back as the last, and values of an enum or a type stay: SQL cannot mend it.
LASTING = ("column order", "type")
HONEST = tuple(
    deed
    for deed in DEEDS
    for said in ("events_new", "check7", "orders OWNER", "FOR ROLE tollbook")
    if said in deed
)
LEFT = "-- Not in the files; look before you take the dashes away:"


Difference = drift.Difference


@dataclass(frozen=True)
class Pair:
    """Two databases alike; what is done to the first is undone when the test ends."""

    live: Connection
    wanted: Connection
    want: Side

    def read(self) -> tuple[Side, Side]:
        live = Side(catalog.read(self.live), catalog.read_needs(self.live))
        live, want, _ = drift.level(live, self.want, NOTHING, self.wanted)
        return live, want

    def spoil(self, deeds: list[str]) -> None:
        for deed in deeds:
            with suppress(psycopg.Error), self.live.transaction():
                self.live.execute(deed.encode())

    def mend(self, *, drops: bool = False) -> list[Difference]:
        """Run what is printed, or what is printed as comments; return what still differs."""
        statements = reconcile(*self.read())
        text = "\n".join(statements)
        if drops:
            shown = statements[statements.index(LEFT) + 1 :] if LEFT in statements else ()
            text = "\n".join(line.removeprefix("-- ") for line in shown)
        self.live.execute(text.encode())
        live, want = self.read()
        return [one for one in drift.find(live.objects, want.objects) if one.kind not in LASTING]


@pytest.fixture(scope="module")
def stage(migrate_server: Server) -> Stage:
    return Stage(migrate_server.url(user="postgres"), ignore, itertools.count(1000))


@pytest.fixture(scope="module")
def pair(stage: Stage) -> Iterator[Pair]:
    url = stage.make()
    with connected(url) as conn:
        conn.execute(SCHEMA.encode())
    other = stage.make(template=url)
    with connected(url) as conn, connected(other) as there:
        yield Pair(conn, there, Side(catalog.read(there), catalog.read_needs(there)))


def test_a_view_that_another_version_prints_otherwise_is_the_same(pair: Pair) -> None:
    live, _ = pair.read()
    key = ("view", "shop.totals")
    older = (
        live.objects[key]
        .facts["query"]
        .replace(" person", " orders.person")
        .replace("(total", "(orders.total")
    )
    assert older != live.objects[key].facts["query"]
    for query, same in ((older, True), (older.replace("sum", "max"), False)):
        printed = replace(
            live.objects[key], definition=query, facts={**live.objects[key].facts, "query": query}
        )
        side = Side({**live.objects, key: printed}, live.needs)
        have, want, _ = drift.level(side, pair.want, NOTHING, pair.wanted)
        assert (drift.find(have.objects, want.objects) == []) is same


@given(st.lists(st.sampled_from(DEEDS), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_its_sql_has_run_a_database_differs_by_what_it_has_more(pair: Pair, deeds: list[str]) -> None:
    with pair.live.transaction(force_rollback=True):
        pair.spoil(deeds)
        assert [one for one in pair.mend() if one.what != "extra"] == []
        assert pair.mend(drops=True) == []


@pytest.mark.parametrize("deed", DEEDS)
def test_each_deed_is_seen_and_mended(pair: Pair, deed: str) -> None:
    with pair.live.transaction(force_rollback=True):
        pair.live.execute(deed.encode())
        live, want = pair.read()
        assert bool(drift.find(live.objects, want.objects)) != (deed in HONEST)
        assert [one for one in pair.mend() if one.what != "extra"] == []
        assert pair.mend(drops=True) == []


@pytest.mark.parametrize("path", ['""', '"$user", "a, b", public'])
def test_a_stage_takes_any_search_path(stage: Stage, path: str) -> None:
    with connected(stage.make(path=path, schemas=["a, b"])) as conn:
        row = conn.execute("SELECT current_setting('search_path'), current_schemas(false)::text[]").fetchone()
    assert row == (path, [] if path == '""' else ["a, b", "public"])


def test_a_publication_that_publishes_otherwise_is_told(pair: Pair) -> None:
    with pair.live.transaction(force_rollback=True):
        pair.live.execute("CREATE PUBLICATION news FOR TABLE shop.orders")
        before = catalog.read(pair.live)
        pair.live.execute("ALTER PUBLICATION news ADD TABLE shop.people")
        after = catalog.read(pair.live)
        assert [one.name for one in drift.find(after, before)] == ["news"]
        assert any(
            "-- By hand: publication news" in line for line in reconcile(Side(after, {}), Side(before, {}))
        )


def test_default_privileges_are_the_files_whichever_role_applied_them(pair: Pair) -> None:
    with pair.live.transaction(force_rollback=True):
        for text in ("REVOKE SELECT ON TABLES FROM", "GRANT SELECT ON TABLES TO"):
            role = "pg_monitor" if "GRANT" in text else "postgres"
            pair.live.execute(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA shop {text} tollbook".encode()
            )
        live, want = pair.read()
        assert drift.find(live.objects, want.objects) == []
