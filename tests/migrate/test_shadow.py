"""A shadow is as its target is, and the target stays as it was."""

import hashlib
import hmac
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import scalar_row

from tollbook.embedded import Server, throwaway
from tollbook.migrate import catalog, extensions
from tollbook.migrate.backup import backup
from tollbook.migrate.session import connected
from tollbook.migrate.shadow import Shadow, empty, make_tablespaces, shadow
from tollbook.migrate.trial import try_out

SHOP = """
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('good', 'bad');
CREATE TABLE shop.buyers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE TABLE shop.orders (id serial PRIMARY KEY, buyer bigint NOT NULL REFERENCES shop.buyers, mood shop.mood,
    follows int REFERENCES shop.orders, CHECK (id > 0));
CREATE INDEX orders_buyer ON shop.orders (buyer);
CREATE VIEW shop.open AS SELECT id FROM shop.orders WHERE mood = 'good';
CREATE MATERIALIZED VIEW shop.totals AS SELECT count(*) AS orders FROM shop.orders;
CREATE FUNCTION shop.stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no more'; END $$;
CREATE TABLE shop.events (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2026 PARTITION OF shop.events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO shop.buyers (name) SELECT 'secret ' || i FROM generate_series(1, 2000) AS i;
INSERT INTO shop.orders (buyer, mood, follows)
    SELECT 2001 - i, 'good', CASE WHEN i > 1 THEN i - 1 END FROM generate_series(1, 2000) AS i;
INSERT INTO shop.events SELECT '2026-05-05', i FROM generate_series(1, 100) AS i;
CREATE TRIGGER stop BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.stop();
REFRESH MATERIALIZED VIEW shop.totals;
ALTER TABLE shop.buyers ENABLE ROW LEVEL SECURITY;
"""
ROLES = """
CREATE ROLE app LOGIN CREATEROLE; CREATE ROLE rds_superuser; GRANT rds_superuser TO app;
CREATE ROLE reader; CREATE ROLE "odd ""one" BYPASSRLS; GRANT reader TO app;
CREATE ROLE owner; GRANT owner TO app WITH INHERIT FALSE, SET FALSE;
ALTER ROLE app SET search_path = shop, public; CREATE DATABASE shop OWNER app;
ALTER DATABASE shop SET work_mem = '7MB'
"""
PICTURE = """
SELECT md5(string_agg(concat(c.oid, c.relname, c.relfilenode, c.xmin, c.relacl), ',' ORDER BY c.oid))
    || (SELECT string_agg(s::text, ',') FROM pg_sequences AS s)
    || (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())
FROM pg_class AS c
"""


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server whose roles are this module's own."""
    with throwaway(settings={"max_connections": "40", "autovacuum": "off"}) as server:
        with psycopg.connect(server.url("postgres", user="postgres"), autocommit=True) as admin:
            for statement in ROLES.split(";"):
                admin.execute(statement.encode())
        yield server


@pytest.fixture(scope="module")
def target(own_server: Server) -> str:
    """The address, as its owner, of a database that has something of everything."""
    address = own_server.url("shop", user="app")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(SHOP.encode())
        connection.execute("GRANT SELECT ON shop.orders TO reader")
        connection.execute("CREATE POLICY p ON shop.buyers TO reader USING (true)")
    with psycopg.connect(own_server.url("shop", user="postgres"), autocommit=True) as connection:
        make_tablespaces(connection, ["cold store"])
        connection.execute(
            """CREATE TABLE public.others (i int); ALTER TABLE public.others OWNER TO "odd ""one";
            GRANT SELECT ON public.others TO app;
            ALTER TABLE public.others SET TABLESPACE "cold store";
            CREATE EXTENSION hstore; ANALYZE shop.orders"""
        )
    return address


@pytest.fixture(scope="module")
def bare(target: str) -> Iterator[Shadow]:
    with shadow(target) as made:
        yield made


@pytest.fixture(scope="module")
def sampled(target: str) -> Iterator[Shadow]:
    with shadow(target, rows=20) as made:
        yield made


def look(address: str, query: str) -> Any:
    with psycopg.connect(address, row_factory=scalar_row, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchone()


def test_a_shadow_has_every_definition_of_its_target(target: str, bare: Shadow) -> None:
    with connected(target) as ours, connected(bare.url) as theirs:
        assert catalog.diff(catalog.snapshot(ours), catalog.snapshot(theirs)) == []
    assert bare.lacks == ()


def test_a_shadow_is_entered_as_the_targets_own_role_with_its_settings(bare: Shadow) -> None:
    assert look(bare.url, "SELECT session_user || ' ' || current_setting('is_superuser')") == "app off"
    assert look(bare.url, "SHOW search_path") == "shop, public"
    assert look(bare.url, "SHOW work_mem") == "7MB"
    assert look(bare.url, "SELECT pg_has_role('reader', 'usage') AND pg_has_role('reader', 'set')")
    assert look(bare.url, "SELECT pg_has_role('owner', 'member')")
    assert not look(bare.url, "SELECT pg_has_role('owner', 'usage') OR pg_has_role('owner', 'set')")


def test_where_a_provider_lets_his_customers_make_extensions_the_shadow_does(bare: Shadow) -> None:
    with psycopg.connect(bare.url) as connection:
        connection.execute("CREATE SCHEMA theirs; CREATE EXTENSION postgres_fdw SCHEMA theirs")
        connection.rollback()


def test_roles_of_the_target_are_there_and_cannot_log_in(bare: Shadow) -> None:
    query = "SELECT rolbypassrls AND NOT rolcanlogin FROM pg_roles WHERE rolname = 'odd \"one'"
    assert look(bare.url, query)


def test_a_bare_shadow_has_no_rows_and_knows_the_targets_sizes(bare: Shadow) -> None:
    assert look(bare.url, "SELECT count(*) FROM shop.orders") == 0
    assert bare.rows == 0
    assert bare.sizes["shop.orders"].rows == 2000
    assert bare.sizes["shop.orders"].bytes > 50_000
    assert bare.sizes["shop.events"].bytes > 0  # the sum of its partitions


def test_sequences_go_on_where_the_targets_are(bare: Shadow) -> None:
    assert look(bare.admin_url, "SELECT nextval('shop.orders_id_seq')") == 2001


def test_sampled_rows_refer_to_rows_that_are_there(sampled: Shadow) -> None:
    assert sampled.rows >= 40
    orders = look(sampled.url, "SELECT count(*) FROM shop.orders")
    assert 10 <= orders < 500
    for table, key, parent in (("orders", "buyer", "buyers"), ("orders", "follows", "orders")):
        assert not look(
            sampled.admin_url,
            f"""SELECT count(*) FROM shop.{table} c WHERE {key} IS NOT NULL
            AND NOT EXISTS (SELECT FROM shop.{parent} p WHERE p.id = c.{key})""",
        )
    assert look(sampled.admin_url, "SELECT count(*) = 20 FROM shop.events_2026")
    assert look(sampled.admin_url, "SELECT bool_and(upper_name = upper(name)) FROM shop.buyers")
    assert look(sampled.url, "SELECT orders FROM shop.totals") == orders


def test_a_shadow_reads_its_target_and_leaves_no_trace(target: str) -> None:
    before = look(target, PICTURE)
    said: list[Any] = []
    with shadow(target, rows=5, listen=said.append) as made:
        folder = Path(made.url.partition("host=")[2].partition("&")[0].replace("%2F", "/"))
        assert folder.exists()
    assert look(target, PICTURE) == before
    assert not folder.exists()
    assert "secret" not in "".join(event.text for event in said)


def test_what_a_role_may_not_read_is_said(own_server: Server, target: str) -> None:
    from tollbook.migrate.shadow import ShadowFailed

    with psycopg.connect(own_server.url("postgres", user="postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE stranger LOGIN")
    with pytest.raises(ShadowFailed, match="--live"), shadow(own_server.url("shop", user="stranger")):
        pass


def test_an_extension_that_the_wheel_lacks_has_a_stand_in(own_server: Server) -> None:
    where = own_server.data_dir / "postgresql" / "odd" / "extension"
    where.mkdir(parents=True)
    (where / "oddity.control").write_text("default_version = '1.2'\n")
    (where / "unmade.control").write_text("comment = 'of no version'\n")
    (where / "oddity--1.2.sql").write_text(
        """CREATE TYPE shape;
        CREATE FUNCTION shape_in(cstring) RETURNS shape STRICT IMMUTABLE LANGUAGE internal AS 'textin';
        CREATE FUNCTION shape_out(shape) RETURNS cstring STRICT IMMUTABLE LANGUAGE internal AS 'textout';
        CREATE FUNCTION shape_mod(cstring[]) RETURNS int STRICT IMMUTABLE
            LANGUAGE internal AS 'array_cardinality';
        CREATE TYPE shape (INPUT = shape_in, OUTPUT = shape_out, TYPMOD_IN = shape_mod);
        CREATE FUNCTION extent(of shape) RETURNS numeric LANGUAGE sql AS 'SELECT 1.0';
        CREATE FUNCTION same(shape, shape) RETURNS boolean STRICT IMMUTABLE LANGUAGE internal AS 'texteq';
        CREATE OPERATOR === (FUNCTION = same, LEFTARG = shape, RIGHTARG = shape);
        CREATE TABLE kinds (i int)"""
    )
    for path in (where.parent, where, *where.iterdir()):
        path.chmod(0o755)
    with psycopg.connect(own_server.url("postgres", user="postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE odd")
        admin.execute("ALTER DATABASE odd SET extension_control_path = '$system:/proc/self/cwd/odd'")
    address = own_server.url("odd", user="postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            """CREATE EXTENSION oddity; CREATE TABLE lots (at shape(9, 9), size numeric);
            ALTER TABLE lots ALTER size SET DEFAULT extent('x');
            CREATE VIEW same_lots AS SELECT * FROM lots WHERE at === at"""
        )
    with shadow(address) as made:
        assert any("oddity is a stand-in" in one for one in made.lacks)
        assert look(made.url, "SELECT count(*) FROM same_lots") == 0
        assert look(made.url, "SELECT 'any text'::shape::text") == "any text"
        with pytest.raises(psycopg.Error, match="cannot be called on a shadow"):
            look(made.url, "SELECT extent('x')")
        with pytest.raises(psycopg.Error, match="of unmade nothing is known here") as raised:
            look(made.url, "CREATE EXTENSION unmade")
        assert raised.value.sqlstate == extensions.CANNOT
        with pytest.raises(psycopg.Error, match="pgcrypto"):  # which their server has not got either
            look(made.url, "CREATE EXTENSION pgcrypto")


def test_pgcrypto_and_uuid_ossp_work_on_a_shadow(url: str) -> None:
    with empty() as made:
        assert made.target == ""
        assert made.sizes == {}
        with psycopg.connect(made.url, autocommit=True) as connection:
            connection.execute(
                'CREATE EXTENSION "uuid-ossp"; CREATE SCHEMA crypt; CREATE EXTENSION pgcrypto SCHEMA crypt'
            )
        assert look(made.url, "SELECT uuid_generate_v4() <> uuid_generate_v4()")
        assert look(made.url, "SELECT length(crypt.gen_random_bytes(33))") == 33
        for question, answer in ANSWERS.items():
            assert look(made.url, f"SELECT {question}::text") == answer, question
        assert try_out(None, backup(made.url).path).objects["extension"] == 3


# As the real ones answer.
ANSWERS = {
    "encode(crypt.digest('abc', 'sha256'), 'hex')": hashlib.sha256(b"abc").hexdigest(),
    **{
        f"encode(crypt.digest(repeat('a', {size}), 'sha1'), 'hex')": hashlib.sha1(b"a" * size).hexdigest()
        for size in (0, 55, 56, 64, 200)
    },
    **{
        f"encode(crypt.hmac('said', repeat('k', {size}), '{kind}'), 'hex')": hmac.digest(
            b"k" * size, b"said", kind
        ).hex()
        for size, kind in ((3, "md5"), (65, "sha1"), (64, "sha256"), (129, "sha512"))
    },
    "uuid_generate_v3(uuid_ns_url(), 'http://a')": str(uuid.uuid3(uuid.NAMESPACE_URL, "http://a")),
    "uuid_generate_v5(uuid_ns_dns(), 'a.b')": str(uuid.uuid5(uuid.NAMESPACE_DNS, "a.b")),
    "crypt.pgp_sym_decrypt(crypt.pgp_sym_encrypt('said', 'k'), 'k')": "said",
    "(SELECT crypt.crypt('p', kept) = kept FROM crypt.crypt('p', crypt.gen_salt('bf', 8)) kept)": "true",
}


def test_foreign_servers_lead_nowhere(own_server: Server) -> None:
    with psycopg.connect(own_server.url("postgres", user="postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE linked")
    address = own_server.url("linked", user="postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            f"""CREATE EXTENSION postgres_fdw;
            CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{own_server.socket_dir}');
            CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'postgres');
            CREATE FOREIGN TABLE far_away (i int) SERVER far"""
        )
    with shadow(address) as made, pytest.raises(psycopg.Error, match="nowhere"):
        look(made.url, "SELECT count(*) FROM far_away")


def test_a_killed_plan_leaves_no_server_and_its_folder_goes_with_the_next(
    write: Any, folder: Path, url: str, run: Callable[..., Any]
) -> None:
    write("0001_a", up="CREATE TABLE a (i int); SELECT pg_sleep(600)")
    with tempfile.TemporaryDirectory(dir="/tmp") as own:
        command = [
            sys.executable,
            "-m",
            "tollbook.migrate",
            "plan",
            "--dir",
            str(folder),
            "--database-url",
            url,
        ]
        process = subprocess.Popen(command, env={**os.environ, "TMPDIR": own}, stdout=subprocess.DEVNULL)
        try:
            log = _await(lambda: next((p for p in Path(own).glob("*/data/postgresql/postmaster.pid")), None))
            _await(lambda: "pg_sleep" in _activity(own))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        pid = int(log.read_text().splitlines()[0]) if log.exists() else 0
        _await(lambda: not pid or not Path(f"/proc/{pid}").exists())
        for left in Path(own).glob("tollbook-throwaway-*"):
            os.utime(left, (0, 0))
        code = "from tollbook.embedded import throwaway\nwith throwaway(): pass"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": own}, check=True)
        assert not list(Path(own).glob("tollbook-*"))
    assert run("status").exit_code == 3
    assert look(url, "SELECT to_regclass('a') IS NULL AND to_regnamespace('tollbook_migrate') IS NULL")


def _activity(own: str) -> str:
    """Return what the sessions of the throw-away server in a folder are doing."""
    (socket_dir,) = Path(own).glob("*/data/postgresql/socket")
    address = f"host={socket_dir} port=5432 user=postgres dbname=postgres"
    try:
        return (
            look(address, "SELECT string_agg(query, ' ') FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            or ""
        )
    except psycopg.Error:
        return ""


def _await(condition: Callable[[], Any], seconds_max: float = 120) -> Any:
    deadline = time.monotonic() + seconds_max
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found
