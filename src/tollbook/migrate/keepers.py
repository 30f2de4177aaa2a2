"""The tables in which other tools keep their histories: how each is read, and written."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from tollbook.migrate.errors import MigrateError
from tollbook.migrate.files import Migration
from tollbook.migrate.formats import drizzle, flyway, graphile, sqitch
from tollbook.migrate.session import Connection

AGAIN = "'"  # behind a key that stands for another migration already


@dataclass(frozen=True, slots=True)
class Kept:
    """A migration that a tool's table says is applied: by its own key, with the checksum it keeps, if any.

    floor: it stands for all before it too, and there may be no file of it.
    """

    key: str
    checksum: str | None = None
    floor: bool = False


@dataclass(frozen=True, slots=True)
class Keeper:
    """A tool's table: what identifies a migration in it, how it sums a file, and how its rows are made."""

    tool: str
    table: str
    columns: frozenset[str]
    read: Callable[[Connection], list[Kept]]
    key: Callable[[Migration], str]
    checksums: Callable[[Migration], tuple[str, ...]]  # all that are right, the tool's own first
    write: Callable[[Connection, Sequence[Migration]], None]
    bare: bool = False  # its table has no other columns, by which it is told from those of others


def _number(migration: Migration) -> str:
    return _digits(migration).lstrip("0") or "0"


def _digits(migration: Migration) -> str:
    """Return the leading digits of the file's name, zeros and all."""
    match = re.match(r"[0-9]+", migration.label)
    return match[0] if match else migration.version


def _version(migration: Migration) -> str:
    return migration.version


def _dateless(migration: Migration) -> str:
    return migration.label.partition("_")[0].replace("-", "")


def _none(migration: Migration) -> tuple[str, ...]:
    return ()


def _digest(name: str) -> Callable[[Migration], tuple[str, ...]]:
    """Sum the file as it lies, as those tools do; with other line ends it is the same file."""

    def digest(migration: Migration) -> tuple[str, ...]:
        content = migration.up.path.read_bytes()
        plain = content.replace(b"\r\n", b"\n")
        texts = (content, plain, plain.replace(b"\n", b"\r\n"))
        return tuple(hashlib.new(name, text).hexdigest() for text in texts)

    return digest


def _crc(migration: Migration) -> tuple[str, ...]:
    return tuple(map(str, flyway.list_checksums(migration)))


def _read_header(migration: Migration) -> graphile.Header | None:
    """Return the header of a committed migration; what is run after them has none."""
    return graphile.read_header(migration.up.path.read_text(encoding="utf-8-sig"))


def _hash(migration: Migration) -> tuple[str, ...]:
    header = _read_header(migration)
    return (header.hash,) if header else ()


def _read_sqlx(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        "SELECT version::text, encode(checksum, 'hex'), success FROM _sqlx_migrations ORDER BY version"
    ).fetchall()
    if failed := [version for version, _, success in rows if not success]:
        raise MigrateError(_half(f"_sqlx_migrations says that {failed[0]} failed half way"))
    return [Kept(version, checksum) for version, checksum, _ in rows]


def _half(what: str) -> str:
    return f"{what}. Finish or undo it by that tool first; nothing was taken over."


def _write_sqlx(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            """INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
            VALUES (%(version)s, %(description)s, true, decode(%(checksum)s, 'hex'), 0)""",
            {
                "version": int(one.version),
                "description": one.label.partition("_")[2].replace("_", " "),
                "checksum": _digest("sha384")(one)[0],
            },
        )


def _read_prisma(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT migration_name, checksum, finished_at IS NOT NULL, applied_steps_count = 0
        FROM _prisma_migrations WHERE rolled_back_at IS NULL ORDER BY started_at"""
    ).fetchall()
    if failed := [name for name, _, finished, _ in rows if not finished]:
        raise MigrateError(_half(f"_prisma_migrations says that {failed[0]} was never finished"))
    return [Kept(name, checksum, resolved) for name, checksum, _, resolved in rows]


def _write_prisma(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            """INSERT INTO _prisma_migrations
                (id, checksum, finished_at, migration_name, started_at, applied_steps_count)
            VALUES (%(id)s, %(checksum)s, now(), %(name)s, now(), 1)""",
            {"id": str(uuid4()), "checksum": _digest("sha256")(one)[0], "name": one.version},
        )


def _read_golang(conn: Connection) -> list[Kept]:
    row = conn.execute("SELECT version::text, dirty FROM schema_migrations").fetchone()
    if row is None:
        return []
    if row[1]:
        raise MigrateError(_half(f"schema_migrations says that version {row[0]} is dirty"))
    return [Kept(row[0])]  # one row: this one, and all before it


def _write_golang(conn: Connection, migrations: Sequence[Migration]) -> None:
    conn.execute("DELETE FROM schema_migrations")
    for one in migrations[-1:]:
        conn.execute(
            "INSERT INTO schema_migrations (version, dirty) VALUES (%(version)s, false)",
            {"version": int(one.version)},
        )


def _read_tern(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version::text FROM schema_version WHERE version > 0")
    return [Kept(row[0]) for row in rows]  # one row: this one, and all before it


def _write_tern(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations[-1:]:
        conn.execute("UPDATE schema_version SET version = %(version)s", {"version": int(one.version)})


def _read_morph(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version::text FROM db_migrations ORDER BY version")
    return [Kept(row[0]) for row in rows]


def _write_morph(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO db_migrations (version, name) VALUES (%(version)s, %(name)s)",
            {"version": int(one.version), "name": one.label.partition("_")[2]},
        )


def _read_pop(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version::text FROM schema_migration ORDER BY version")
    return [Kept(row[0]) for row in rows]


def _write_pop(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute("INSERT INTO schema_migration (version) VALUES (%(version)s)", {"version": _digits(one)})


def _read_refinery(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version::text FROM refinery_schema_history ORDER BY version")
    return [Kept(row[0]) for row in rows]


def _write_no_refinery(conn: Connection, migrations: Sequence[Migration]) -> None:
    raise MigrateError("refinery keeps a sum that only refinery makes. Tell it: refinery migrate --fake.")


def _read_dbmate(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version::text FROM schema_migrations ORDER BY version")
    return [Kept(row[0]) for row in rows]


def _write_dbmate(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO schema_migrations (version) VALUES (%(version)s)", {"version": _digits(one)}
        )


def _read_flyway(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT DISTINCT ON (coalesce(version, script)) version, script, checksum::text, type, success
        FROM flyway_schema_history WHERE type <> 'SCHEMA'
        ORDER BY coalesce(version, script), installed_rank DESC"""
    ).fetchall()
    if failed := [script for _, script, _, _, success in rows if not success]:
        raise MigrateError(_half(f"flyway_schema_history says that {failed[0]} failed"))
    return [
        Kept(version or script.rpartition("/")[2].removesuffix(".sql"), checksum, "BASELINE" in kind)
        for version, script, checksum, kind, _ in rows
        if not kind.startswith("UNDO")
    ]


def _write_flyway(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            """INSERT INTO flyway_schema_history (installed_rank, version, description, type, script,
                checksum, installed_by, execution_time, success)
            SELECT coalesce(max(installed_rank), 0) + 1, %(version)s, %(description)s, 'SQL', %(script)s,
                %(checksum)s, session_user, 0, true FROM flyway_schema_history""",
            {
                "version": None if one.repeatable else one.version,
                "description": one.label.partition("__")[2].replace("_", " "),
                "script": one.up.path.name,
                "checksum": int(_crc(one)[0]),
            },
        )


def _read_goose(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT DISTINCT ON (version_id) version_id::text, is_applied FROM goose_db_version
        WHERE version_id > 0 ORDER BY version_id, id DESC"""
    )
    return [Kept(version) for version, applied in rows if applied]


def _write_goose(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO goose_db_version (version_id, is_applied) VALUES (%(version)s, true)",
            {"version": int(one.version)},
        )


def _read_graphile(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT filename, hash FROM graphile_migrate.migrations ORDER BY filename")
    return [Kept(name.removesuffix(".sql"), hash_) for name, hash_ in rows]


def _write_graphile(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one, header in ((one, _read_header(one)) for one in migrations):
        if header:
            conn.execute(
                """INSERT INTO graphile_migrate.migrations (hash, previous_hash, filename)
                VALUES (%(hash)s, %(previous)s, %(name)s)""",
                {"hash": header.hash, "previous": header.previous, "name": f"{_digits(one)}.sql"},
            )


def _read_diesel(conn: Connection) -> list[Kept]:
    return [Kept(row[0]) for row in conn.execute("SELECT version FROM __diesel_schema_migrations ORDER BY 1")]


def _write_diesel(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO __diesel_schema_migrations (version) VALUES (%(version)s)",
            {"version": _dateless(one)},
        )


def _read_sqitch(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT project || ':' || change || repeat(%(again)s, (row_number() OVER (
                PARTITION BY project, change ORDER BY committed_at) - 1)::integer), script_hash
        FROM sqitch.changes ORDER BY committed_at""",
        {"again": AGAIN},
    )
    return [Kept(*row) for row in rows]


def _find_change(migration: Migration) -> str:
    return f"{sqitch.find_project(migration.up.path)}:{migration.label.partition('@')[0]}"


def _write_nothing(conn: Connection, migrations: Sequence[Migration]) -> None:
    names = " ".join(one.label for one in migrations)
    raise MigrateError(
        f"Sqitch names a change by a digest of its plan, which only Sqitch makes. Give it these as they are: "
        f"sqitch deploy --log-only, up to {names.rpartition(' ')[2]}."
    )


def _find_time(migration: Migration) -> str:
    return str(drizzle.find_time(migration))


def _read_drizzle(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT created_at::text, hash FROM drizzle.__drizzle_migrations ORDER BY created_at")
    return [Kept(time, hash_) for time, hash_ in rows]


def _write_drizzle(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES (%(hash)s, %(time)s)",
            {"hash": _digest("sha256")(one)[0], "time": int(_find_time(one))},
        )


def _read_supabase(conn: Connection) -> list[Kept]:
    rows = conn.execute("SELECT version FROM supabase_migrations.schema_migrations ORDER BY version")
    return [Kept(row[0]) for row in rows]


def _write_supabase(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            """INSERT INTO supabase_migrations.schema_migrations (version, name)
            VALUES (%(version)s, %(name)s)""",
            {"version": _digits(one), "name": one.label.partition("_")[2]},
        )


def _read_sql_migrate(conn: Connection) -> list[Kept]:
    return [Kept(row[0]) for row in conn.execute("SELECT id FROM gorp_migrations ORDER BY id")]


def _write_sql_migrate(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO gorp_migrations (id, applied_at) VALUES (%(id)s, now())", {"id": one.up.path.name}
        )


def _read_node(conn: Connection) -> list[Kept]:
    return [Kept(row[0]) for row in conn.execute("SELECT name FROM pgmigrations ORDER BY id")]


def _write_node(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            "INSERT INTO pgmigrations (name, run_on) VALUES (%(name)s, now())", {"name": one.up.path.stem}
        )


def _read_atlas(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT version, applied < total, type = 1 AND version ~ '^[0-9]+$'
        FROM atlas_schema_revisions.atlas_schema_revisions
        WHERE version ~ '^[0-9]' ORDER BY version"""
    ).fetchall()
    if failed := [version for version, partly, _ in rows if partly]:
        raise MigrateError(_half(f"atlas_schema_revisions says that {failed[0]} was applied in part"))
    return [Kept(version, floor=baseline) for version, _, baseline in rows]


def _write_atlas(conn: Connection, migrations: Sequence[Migration]) -> None:
    """As `atlas migrate set` does, by the digests that its own file in the folder keeps."""
    for one in migrations:
        sums = one.up.path.with_name("atlas.sum")
        lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
        kept = (line.rpartition(" h1:") for line in lines)
        conn.execute(
            """INSERT INTO atlas_schema_revisions.atlas_schema_revisions (version, description, type,
                applied, total, executed_at, execution_time, hash, operator_version)
            VALUES (%(version)s, %(description)s, 4, 0, 0, now(), 0, %(hash)s, 'tollbook')""",
            {
                "version": _digits(one),
                "description": one.label.partition("_")[2],
                "hash": next((digest for name, _, digest in kept if name == one.up.path.name), ""),
            },
        )


def _read_hasura(conn: Connection) -> list[Kept]:
    rows = conn.execute(
        """SELECT DISTINCT version, dirty::boolean
        FROM hdb_catalog.hdb_version, jsonb_each(cli_state -> 'migrations') AS of (database, versions),
            jsonb_each_text(versions) AS one (version, dirty) ORDER BY version"""
    ).fetchall()
    if failed := [version for version, dirty in rows if dirty]:
        raise MigrateError(_half(f"hdb_catalog.hdb_version says that {failed[0]} is dirty"))
    return [Kept(version) for version, _ in rows]


def _write_hasura(conn: Connection, migrations: Sequence[Migration]) -> None:
    for one in migrations:
        conn.execute(
            """UPDATE hdb_catalog.hdb_version SET cli_state = cli_state || jsonb_build_object('migrations',
                coalesce(cli_state -> 'migrations', '{}') || jsonb_build_object(%(database)s::text,
                coalesce(cli_state #> ARRAY['migrations', %(database)s], '{}')
                || jsonb_build_object(%(version)s::text, false)))""",
            {"database": one.up.path.parent.parent.name, "version": _digits(one)},
        )


def _columns(*names: str) -> frozenset[str]:
    return frozenset(names)


def _read_alembic(conn: Connection) -> list[Kept]:
    return [Kept(row[0]) for row in conn.execute("SELECT version_num FROM alembic_version")]


def _write_alembic(conn: Connection, migrations: Sequence[Migration]) -> None:
    heads = {one.version for one in migrations} - {before for one in migrations for before in one.after}
    gone = [before for one in migrations for before in one.after]
    conn.execute("DELETE FROM alembic_version WHERE version_num = ANY(%(gone)s)", {"gone": gone})
    for version in sorted(heads):
        conn.execute("INSERT INTO alembic_version VALUES (%(version)s)", {"version": version})


KEEPERS: tuple[Keeper, ...] = (
    Keeper(
        "SQLx", "_sqlx_migrations", _columns("version", "success", "checksum"),
        _read_sqlx, _version, _digest("sha384"), _write_sqlx,
    ),
    Keeper(
        "Prisma", "_prisma_migrations", _columns("migration_name", "checksum", "finished_at"),
        _read_prisma, _version, _digest("sha256"), _write_prisma,
    ),
    Keeper(
        "golang-migrate", "schema_migrations", _columns("version", "dirty"),
        _read_golang, _number, _none, _write_golang,
    ),
    Keeper(
        "Flyway", "flyway_schema_history", _columns("installed_rank", "version", "checksum"),
        _read_flyway, _version, _crc, _write_flyway,
    ),
    Keeper(
        "goose", "goose_db_version", _columns("version_id", "is_applied"),
        _read_goose, _number, _none, _write_goose,
    ),
    Keeper(
        "graphile-migrate", "graphile_migrate.migrations", _columns("hash", "filename"),
        _read_graphile, _digits, _hash, _write_graphile,
    ),
    Keeper(
        "Diesel", "__diesel_schema_migrations", _columns("version", "run_on"),
        _read_diesel, _dateless, _none, _write_diesel,
    ),
    Keeper(
        "Drizzle", "drizzle.__drizzle_migrations", _columns("hash", "created_at"),
        _read_drizzle, _find_time, _digest("sha256"), _write_drizzle,
    ),
    Keeper(
        "Supabase", "supabase_migrations.schema_migrations", _columns("version", "name"),
        _read_supabase, _digits, _none, _write_supabase,
    ),
    Keeper(
        "sql-migrate", "gorp_migrations", _columns("id", "applied_at"),
        _read_sql_migrate, lambda one: one.up.path.name, _none, _write_sql_migrate,
    ),
    Keeper(
        "node-pg-migrate", "pgmigrations", _columns("name", "run_on"),
        _read_node, lambda one: one.up.path.stem, _none, _write_node,
    ),
    Keeper(
        "Sqitch", "sqitch.changes", _columns("change_id", "change", "project"),
        _read_sqitch, _find_change, _digest("sha1"), _write_nothing,
    ),
    Keeper(
        "Atlas", "atlas_schema_revisions.atlas_schema_revisions", _columns("version", "applied", "total"),
        _read_atlas, _digits, _none, _write_atlas,
    ),
    Keeper(
        "Hasura", "hdb_catalog.hdb_version", _columns("cli_state"),
        _read_hasura, _digits, _none, _write_hasura,
    ),
    Keeper(
        "Alembic", "alembic_version", _columns("version_num"), _read_alembic, _version, _none, _write_alembic
    ),
    Keeper("tern", "schema_version", _columns("version"), _read_tern, _number, _none, _write_tern, bare=True),
    Keeper(
        "morph", "db_migrations", _columns("version", "name"), _read_morph, _number, _none, _write_morph
    ),
    Keeper("pop", "schema_migration", _columns("version"), _read_pop, _digits, _none, _write_pop),
    Keeper(
        "refinery", "refinery_schema_history", _columns("version", "name", "applied_on", "checksum"),
        _read_refinery, _version, _none, _write_no_refinery,
    ),
    # Last: Rails and others keep versions in a table of this name and shape as well.
    Keeper(
        "dbmate", "schema_migrations", _columns("version"), _read_dbmate, _digits, _none, _write_dbmate
    ),
)  # fmt: skip
