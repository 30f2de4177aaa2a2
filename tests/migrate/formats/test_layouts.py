"""How projects lay out the folders of golang-migrate, SQLx, goose, Flyway and graphile-migrate."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import Folder, catalog, formats, replay
from tollbook.migrate.errors import FolderRefused
from tollbook.migrate.files import Migration
from tollbook.migrate.session import connected

from .test_formats import GOOSE, TABLE, Files, lay, make_graphile

Apply = Callable[..., Result]


def read(folder: Path, files: dict[str, str]) -> list[Migration]:
    lay(folder, files)
    return formats.read([Folder("shop", folder)])


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        # golang-migrate and SQLx know a migration by its number alone.
        ({"1_users.up.sql": TABLE, "1_user.down.sql": "DROP TABLE a"}, [("1_users", "1_user.down.sql")]),
        (
            {
                "20150100000001000000_net.postgres.up.sql": TABLE,
                "20150100000001000000_net.mysql.up.sql": "`",
                "20150100000001000000_net.down.sql": "DROP TABLE a",
                "20150100000001000001_lite.sqlite3.up.sql": "PRAGMA x",
                "20150100000001000001_lite.down.sql": "",
                "20150100000001000002_all.up.sql": "SELECT 1",
                "20150100000001000002_all.cockroach.up.sql": "`",
            },
            [
                ("20150100000001000000_net", "20150100000001000000_net.down.sql"),
                ("20150100000001000002_all", None),
            ],
        ),
        (
            {"V0001.First.postgres.up.sql": TABLE, "V0001.First.sqlite.up.sql": "`"},
            [("V0001.First", None)],
        ),
        (
            {
                "2024.01.02T12.00.00.a.sql": TABLE,
                "2024.01.02T13.00.00.b.sql": "SELECT 1",
                "down/2024.01.02T12.00.00.a.sql": "DROP TABLE a",
                "down/2023.01.02T12.00.00.gone.sql": "DROP TABLE gone",
            },
            [
                ("2024.01.02T12.00.00.a", "2024.01.02T12.00.00.a.sql"),
                ("2024.01.02T13.00.00.b", None),
            ],
        ),
        (
            dict.fromkeys(("2024-01-02T10:00:00-a.sql", "2024-01-02T10:05:00-b.sql"), TABLE),
            [
                ("2024-01-02T10:00:00-a", None),
                ("2024-01-02T10:05:00-b", None),
            ],
        ),
        (
            dict.fromkeys(("2024-01-02-10-00-00_a.sql", "2024-01-02-10-05-00_b.sql"), TABLE),
            [
                ("2024-01-02-10-00-00_a", None),
                ("2024-01-02-10-05-00_b", None),
            ],
        ),
        # A slip in a name, which its tool passes over.
        ({"1_api.up.sql": TABLE, "1_api.drown.sql": "DROP TABLE a"}, [("1_api", None)]),
    ],
)
def test_a_version_is_one_migration_whatever_its_files_are_called(
    folder: Path, files: dict[str, str], pairs: list[tuple[str, str | None]]
) -> None:
    found = read(folder, files)
    assert [(one.label, one.down and one.down.path.name) for one in found] == pairs


def test_a_folder_for_each_way_is_read_from_that_of_the_way_there(folder: Path) -> None:
    files = {"up/001_a.sql": TABLE, "down/001_a.sql": "DROP TABLE a"}
    with pytest.raises(FolderRefused, match="up: give that by --dir"):
        read(folder, files)
    (one,) = read(folder / "up", {})
    assert one.down is not None
    assert one.down.text == "DROP TABLE a"


@pytest.mark.parametrize("mark", ["-- migrate:", "-- +goose "])
def test_a_byte_order_mark_hides_no_way_back(folder: Path, mark: str) -> None:
    (one,) = read(folder, {"1_a.sql": f"\ufeff{mark}up\n{TABLE}{mark}down\nDROP TABLE a;\n"})
    assert "DROP" not in one.up.text


def test_a_file_of_both_ways_among_plain_ones_is_told_apart(folder: Path) -> None:
    plain, marked = read(folder, {"1_a.sql": "SELECT 1", "2_b.sql": "-- +goose Up\nA\n-- +goose Down\nB\n"})
    assert plain.down is None
    assert marked.down is not None
    assert "B" not in marked.up.text


@pytest.mark.parametrize(
    ("files", "second"),
    [
        (GOOSE | {"00002_more.go": "package x"}, "goose"),
        ({"V1__a.sql": TABLE, "V2__b.java": "class"}, "Flyway"),
    ],
)
def test_a_program_of_another_tool_stops_what_comes_to_it_and_nothing_before(
    folder: Path, run: Any, apply: Apply, files: Files, second: str
) -> None:
    lay(folder, {name: text for name, text in files.items() if name != "00002_more.sql"})
    assert f"which only {second} can run" in apply().output
    assert run("status").exit_code == 3
    assert apply("--to", "1").exit_code == 0


def test_goose_fills_in_the_environment_where_a_file_asks_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLE", "reader")
    text = (
        "-- +goose Up\nSELECT '$ROLE';\n-- +goose ENVSUB ON\nGRANT $ROLE TO ${OWNER:-me};\n-- or $UNSET\n"
        "DO $x$ BEGIN NULL; END $x$;\n-- +goose ENVSUB OFF\nSELECT '${ROLE}';\n"
    )
    (one,) = read(folder, {"1_a.sql": text})
    lines = [line for line in one.up.text.split("\n") if line.strip() and "+goose" not in line]
    assert lines == [
        "SELECT '$ROLE';",
        "GRANT reader TO me;",
        "-- or $UNSET",
        "DO $x$ BEGIN NULL; END $x$;",
        "SELECT '${ROLE}';",
    ]
    before = one.up.checksum
    monkeypatch.setenv("ROLE", "writer")
    assert read(folder, {"1_a.sql": text})[0].up.checksum == before


def test_flyway_is_given_the_folder_of_its_database_among_others(folder: Path) -> None:
    files = {
        "common/V2__c.sql": TABLE,
        "org.postgresql.Driver/V1__a.sql": "CREATE SCHEMA ${flyway:defaultSchema}",
        "com.mysql.cj.jdbc.Driver/V1__a.sql": "`",
        "h2/V1__a.sql": "`",
        "SQL_SERVER/V1__a.sql": "[",
        "org.postgresql.Driver/V3.sql": "SELECT 1",
    }
    found = read(folder, files)
    assert [one.version for one in found] == ["1", "2", "3"]
    assert found[0].up.text == "CREATE SCHEMA public"


def test_flyways_callbacks_are_named_and_never_left_out_unsaid(
    folder: Path, run: Any, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(folder, {"V1__a.sql": TABLE, "sql/afterEachUndo__role.sql": "SELECT 1", "afterMigrateError.sql": ""})
    for result in (apply(), run("plan"), run("status")):
        assert result.exit_code == 1
        text = " ".join(result.output.split())
        for word in (
            "afterEachUndo__role.sql",
            "afterMigrateError.sql",
            "FLYWAY_SKIP_DEFAULT_CALLBACKS=true",
        ):
            assert word in text
    monkeypatch.setenv("FLYWAY_SKIP_DEFAULT_CALLBACKS", "true")
    assert apply().exit_code == 0


def test_what_flyway_calls_back_after_all_runs_whenever_a_migration_was_applied(
    folder: Path, run: Any, apply: Apply, ask: Any
) -> None:
    count = "CREATE TABLE IF NOT EXISTS runs (at timestamptz); INSERT INTO runs VALUES (now());"
    lay(folder, {"V1__a.sql": TABLE, "R__r.sql": "SELECT 1", "afterMigrate__count.sql": count})
    for _ in range(2):
        assert apply().exit_code == 0
        assert ask("SELECT count(*) FROM runs") == 1
    lay(folder, {"V2__b.sql": "SELECT 2", "afterMigrateApplied.sql": "SELECT 3"})
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM runs") == 2
    assert "afterMigrateApplied" in run("status").output
    assert run("verify").exit_code == 0
    lay(folder, {"sql/afterMigrateApplied.sql": "SELECT 3"})
    assert "has the same name" in apply().output


def test_what_is_no_callback_of_a_migration_is_passed_over(folder: Path) -> None:
    others = ["afterInfo.sql", "aftermigrate.sql", "h2/beforeMigrate.sql", "postgresql/V2__b.sql"]
    assert len(read(folder, {"V1__a.sql": TABLE} | dict.fromkeys(others, ""))) == 2
    for name in ("afterEachUndoStatement", "afterMigrateError", "beforeValidate__x", "afterConnect"):
        with pytest.raises(FolderRefused, match=name):
            read(folder, {f"{name}.sql": ""})
        (folder / f"{name}.sql").unlink()


def test_text_that_looks_like_a_placeholder_stays_where_flyway_is_told_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, apply: Apply
) -> None:
    lay(folder, {"V1__a.sql": "SELECT 'Dear ${name}'"})
    assert "FLYWAY_PLACEHOLDER_REPLACEMENT=false" in apply().output
    monkeypatch.setenv("FLYWAY_PLACEHOLDER_REPLACEMENT", "false")
    assert apply().exit_code == 0


def test_graphiles_placeholders_and_settings_are_those_of_its_own_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "grant all on schema app to :DATABASE_OWNER, :VISITOR, :TEAM;\nselect ' :OTHER'::text;\n"
    hash_ = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
    files = {
        ".gmrc": '{\n// x\n"pgSettings": {\n  "search_path": "app,public"\n},\n'
        '"placeholders": { ":VISITOR": "!ENV", ":TEAM": "crew" }}',
        "migrations/committed/000001.sql": f"--! Previous: -\n--! Hash: sha1:{hash_}\n\n{body}",
    }
    lay(folder, files)
    folders = [Folder("shop", folder / "migrations")]
    (one,) = formats.read(folders)
    assert one.up.refusal is not None
    assert "VISITOR" in one.up.refusal.next
    monkeypatch.setenv("VISITOR", "guest")
    (one,) = formats.read(folders)
    assert one.up.refusal is None
    assert one.up.text.split() == [
        *["SET", "search_path", "TO", "app,public;"],
        *["grant", "all", "on", "schema", "app", "to", "CURRENT_USER,", "guest,", "crew;"],
        *["select", "'", ":OTHER'::text;"],
    ]


def test_graphiles_headers_stand_in_any_order_and_an_edit_that_they_allow_is_none(folder: Path) -> None:
    files = make_graphile()
    first = str(files["committed/000001.sql"])
    lay(folder, files | {"committed/README.sql": "", "committed/000001.sql": f"{first}-- edited\n"})
    with pytest.raises(FolderRefused, match="edited after it was committed"):
        formats.read([Folder("shop", folder)])
    lay(folder, {"committed/000001.sql": f"--! AllowInvalidHash\n{first}-- edited\n"})
    assert [one.version for one in formats.read([Folder("shop", folder)])] == ["000001", "000002"]


GMRC_JS = """require("dotenv").config();
module.exports = {
  connectionString: process.env.DATABASE_URL, // "afterAllMigrations": ["no.sql"]
  shadowConnectionString: `${process.env.DATABASE_URL}_shadow`,
  placeholders: { ":TEAM": "crew", ":HOME": process.env.HOME },
  afterAllMigrations: [
    { _: "command", command: 'if [ "$IN_TESTS" != "1" ]; then ./dump {} ]; fi' },
    "!views.sql", { "_": "sql", file: "shadow.sql", shadow: true },
  ],
  ...others, afterReset: ["afterReset.sql"],
};
"""


def test_graphiles_files_for_after_all_migrations_run_after_whatever_was_committed(
    folder: Path, run: Any, apply: Apply, ask: Any
) -> None:
    files = make_graphile()
    lay(
        folder, {".gmrc.js": GMRC_JS, "migrations/views.sql": "CREATE OR REPLACE VIEW v AS SELECT 1 AS :TEAM"}
    )
    second = files.pop("committed/000002-more.sql")
    lay(folder / "migrations", files)
    assert "applied shop/afterAllMigrations-views" in apply().output
    assert "Nothing to do" in apply().output
    lay(folder / "migrations", {"committed/000002-more.sql": second})
    lines = [line.split()[:2] for line in run("status").output.splitlines() if "shop/" in line]
    assert lines == [
        ["applied", "shop/000001"],
        ["pending", "shop/000002-more"],
        ["pending", "shop/afterAllMigrations-views"],
    ]
    assert apply().output.count("✓") == 2
    assert ask("SELECT crew FROM v") == 1
    (folder / ".gmrc.js").write_text(GMRC_JS.replace("after", "before"))
    assert "beforeAllMigrations" in apply().output


def test_a_file_may_begin_what_it_has_begun_and_remark_on_it_as_play_does(
    folder: Path, apply: Apply, ask: Any
) -> None:
    lay(
        folder,
        {"1.sql": f"# --- First\n\n# --- !Ups\nBEGIN;\nBEGIN;\n{TABLE}COMMIT;\n# --- !Downs\nDROP TABLE a;"},
    )
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask("SELECT to_regclass('a') IS NOT NULL")


def test_a_role_that_is_not_there_is_said_to_be_the_servers(folder: Path, apply: Apply) -> None:
    lay(folder, {"1_a.sql": f"{TABLE}ALTER TABLE a OWNER TO nobody_here;"})
    assert "make it there first" in apply().output


def test_a_file_that_changes_its_tools_own_table_is_told_that_it_is_not_here(
    folder: Path, apply: Apply
) -> None:
    lay(folder, {"0030_2.0.0_schema.up.sql": "ALTER TABLE schema_migrations ADD COLUMN data_version int;"})
    assert "the table of the tool that these files were written for" in " ".join(apply().output.split())


def test_what_only_its_tool_can_run_is_taken_over_where_the_tool_has_run_it(
    folder: Path, run: Any, ask: Any
) -> None:
    lay(folder, {"00001_init.sql": GOOSE["00001_init.sql"], "00002_fill.go": "package x"})
    ask(
        f"""{TABLE} CREATE TABLE goose_db_version (id int, version_id bigint, is_applied boolean);
        INSERT INTO goose_db_version VALUES (1, 1, true), (2, 2, true); SELECT 1"""
    )
    taken = run("baseline", "--auto")
    assert "2 taken over from goose" in taken.output, taken.output
    assert run("status").exit_code == 0
    with pytest.raises(replay.NotReplayable, match="only goose can run"):  # `verify` looks for promises then
        replay.play("", formats.read([Folder("shop", folder)]))


def test_flyways_baseline_stands_for_all_up_to_it(folder: Path, run: Any, apply: Apply, ask: Any) -> None:
    lay(folder, {"V1__a.sql": TABLE, "V1_5__b.sql": "SELECT nothing", "V3__c.sql": "ALTER TABLE a ADD j int"})
    ask(
        f"""{TABLE} CREATE TABLE flyway_schema_history (installed_rank int, version text, type text,
        script text, checksum int, success boolean);
        INSERT INTO flyway_schema_history VALUES (1, '2', 'BASELINE', '<< Flyway Baseline >>', NULL, true);
        SELECT 1"""
    )
    assert "2 taken over from Flyway" in run("baseline", "--auto").output
    assert "V3__c" in apply().output


def test_what_flyway_would_repeat_is_taken_over_as_pending(
    folder: Path, run: Any, apply: Apply, ask: Any
) -> None:
    lay(folder, {"V1__a.sql": TABLE, "R__b.sql": "CREATE OR REPLACE VIEW b AS SELECT 1 AS i"})
    ask(
        f"""{TABLE} CREATE TABLE flyway_schema_history (installed_rank int, version text, type text,
        script text, checksum int, success boolean);
        INSERT INTO flyway_schema_history VALUES (1, '1', 'SQL', 'V1__a.sql', NULL, true),
            (2, NULL, 'SQL', 'R__b.sql', 7, true);
        SELECT 1"""
    )
    assert "1 taken over from Flyway" in run("baseline", "--auto").output
    assert "R__b" in apply().output


def test_the_databases_that_a_file_names_are_known_to_those_who_try_it_elsewhere(folder: Path) -> None:
    found = read(
        folder,
        {
            "1_a.sql": "ALTER DATABASE a SET timezone TO 'UTC'; GRANT CONNECT ON DATABASE b, c TO public;",
            "2_b.sql": "COMMENT ON DATABASE d IS 'x'; ALTER DATABASE e OWNER TO me;",
            "3_c.sql": "CREATE DATABASE made; ALTER DATABASE made SET timezone TO 'UTC';",
        },
    )
    assert replay.find_databases(found) == {*"abcde"}


def test_dbmate_goes_by_the_names_of_the_files(folder: Path) -> None:
    text = "-- migrate:up\n-- migrate:down\n"
    found = read(folder, {"20240102_b.sql": text, "20240101000000_a.sql": text, "20240103000000_c.sql": text})
    assert [one.label[-1] for one in found] == ["a", "b", "c"]


def test_dbmate_may_have_several_ways_there_and_back_in_one_file(
    folder: Path, run: Any, apply: Apply, ask: Any
) -> None:
    way = "-- migrate:up\nCREATE TABLE {0} (i int{1});\n-- migrate:down\nDROP TABLE {0};\n"
    lay(folder, {"1_a.sql": way.format("a", " PRIMARY KEY") + way.format("b", " REFERENCES a")})
    apply()
    assert ask("SELECT to_regclass('b') IS NOT NULL")
    result = run("revert", "--auto", "--skip-backup")
    assert result.exit_code == 0, result.output
    for wrong in ("-- migrate:up\n-- migrate:up\n", "-- migrate:up\n-- migrate:down\n-- migrate:down\n"):
        lay(folder, {"1_a.sql": wrong})
        assert f"1_a.sql:{wrong.count('--')}" in apply().output


def test_diesel_takes_dates_with_and_without_dashes_for_the_same(folder: Path) -> None:
    names = ("2017-02-01-000000_c", "20170101000000_b", "00000000000000_a")
    found = read(folder, {f"{name}/up.sql": "" for name in names})
    assert [one.label[-1] for one in found] == ["a", "b", "c"]


def test_line_ends_of_another_checkout_make_no_other_function(url: str) -> None:
    with connected(url) as conn:
        texts: set[str] = set()
        for body in ("SELECT 1\n;", "SELECT 1\r\n;"):
            conn.execute(f"CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $$ {body} $$".encode())
            texts |= {one.definition for one in catalog.read(conn).values() if one.kind == "function"}
    assert len(texts) == 1
