"""Folders as other tools lay them out: recognised, read, and applied unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats
from tollbook.migrate.errors import FolderRefused
from tollbook.migrate.formats import flyway, graphile

Files = dict[str, str]
Apply = Callable[..., Result]

TABLE = "CREATE TABLE a (i int);\n"
PLAIN: Files = {
    "001_init.sql": TABLE,
    "002-more.sql": "ALTER TABLE a ADD j int;\n",
    "010.sql": "CREATE INDEX CONCURRENTLY a_i ON a (i);",
    "schema.sql": "not run",
}
DATED: Files = {"2024-01-02-120000_a.sql": TABLE, "2024-01-03-080000_b.sql": "ALTER TABLE a ADD j int"}
SQLX: Files = {
    "20240102120000_init.up.sql": TABLE,
    "20240102120000_init.down.sql": "DROP TABLE a;",
    "20240103120000_more.up.sql": "ALTER TABLE a ADD j int;",
    "20240103120000_more.down.sql": "ALTER TABLE a DROP j;",
}
GOLANG: Files = {
    "000001_init.up.sql": f"BEGIN;\n{TABLE}COMMIT;\n",
    "000001_init.down.sql": "BEGIN;\nDROP TABLE a;\nCOMMIT;\n",
    "000002_more.up.sql": "ALTER TABLE a ADD j int",
    "000002_more.down.sql": "ALTER TABLE a DROP j",
}
PRISMA: Files = {
    "migration_lock.toml": 'provider = "postgresql"\n',
    "20240102120000_init/migration.sql": "-- CreateTable\n" + TABLE,
    "20240103120000_more/migration.sql": "ALTER TABLE a ADD j int;",
}
DIESEL: Files = {
    "2024-01-02-120000_init/up.sql": TABLE,
    "2024-01-02-120000_init/down.sql": "DROP TABLE a;",
    "2024-01-03-120000_more/up.sql": "ALTER TABLE a ADD j int;",
    "2024-01-03-120000_more/down.sql": "ALTER TABLE a DROP j;",
}
DBMATE: Files = {
    "20240102120000_init.sql": f"-- migrate:up\n{TABLE}\n-- migrate:down\nDROP TABLE a;\n",
    "20240103120000_more.sql": (
        "-- migrate:up transaction:false\nALTER TABLE a ADD j int;\nCREATE INDEX CONCURRENTLY a_j ON a (j);\n"
        "-- migrate:down\nALTER TABLE a DROP j;\n"
    ),
}
GOOSE: Files = {
    "00001_init.sql": f"-- +goose Up\n{TABLE}-- +goose Down\nDROP TABLE a;\n",
    "00002_more.sql": (
        "-- +goose NO TRANSACTION\n-- +goose Up\n-- +goose StatementBegin\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$\n"
        "-- +goose StatementEnd\nALTER TABLE a ADD j int;\n\n-- +goose Down\n-- +goose StatementBegin\n"
        "ALTER TABLE a DROP j\n"
        "-- +goose StatementEnd\nDROP FUNCTION f;\n"
    ),
}
FLYWAY: Files = {
    "V1__init.sql": TABLE,
    "U1__init.sql": "DROP TABLE a",
    "later/V1_10__ten.sql": "ALTER TABLE a ADD k int",
    "later/V1_10__ten.sql.conf": "executeInTransaction=false\n",
    "V1.2__more.sql": "ALTER TABLE a ADD j int",
    "R__view.sql": "CREATE OR REPLACE VIEW v AS SELECT i, j, k FROM a",
}
SQITCH: Files = {
    "sqitch.conf": "[core]\n\tengine = pg\n[deploy]\n\tverify = true\n",
    "sqitch.plan": (
        "%syntax-version=1.0.0\n%project=shop\n\ninit 2024-01-02T12:00:00Z A <a@example.com> # First\n"
        "@v1 2024-01-02T13:00:00Z A <a@example.com> # A tag\n\n"
        "more [init] 2024-01-03T12:00:00Z A <a@example.com> # More\n"
    ),
    "deploy/init.sql": f"-- Deploy shop:init to pg\n\nBEGIN;\n\n{TABLE}\nCOMMIT;\n",
    "revert/init.sql": "BEGIN;\nDROP TABLE a;\nCOMMIT;\n",
    "verify/init.sql": "BEGIN;\nSELECT i FROM a WHERE false;\nROLLBACK;\n",
    "deploy/more.sql": "BEGIN;\nALTER TABLE a ADD j int;\nCOMMIT;\n",
    "revert/more.sql": "BEGIN;\nALTER TABLE a DROP j;\nCOMMIT;\n",
    "verify/more.sql": "BEGIN;\nSELECT false;\nROLLBACK;\n",
}


DRIZZLE: Files = {
    "0000_calm_hulk.sql": TABLE + "--> statement-breakpoint\nCREATE INDEX a_i ON a USING btree (i);",
    "0001_b_merged_later.sql": "ALTER TABLE a RENAME k TO j;",
    "0001_a_left_behind.sql": "DROP TABLE a;",
    "0001_first_of_its_number.sql": "ALTER TABLE a ADD k int;",
    "meta/_journal.json": (
        '{"version": "7", "dialect": "postgresql", "entries": ['
        '{"idx": 0, "when": 1700000000000, "tag": "0000_calm_hulk", "breakpoints": true},'
        '{"idx": 1, "when": 1700000000001, "tag": "0001_first_of_its_number", "breakpoints": true},'
        '{"idx": 2, "when": 1700000000002, "tag": "0001_b_merged_later", "breakpoints": true}]}'
    ),
}
SQL_MIGRATE: Files = {
    "20240102_init.sql": f"-- +migrate Up\n{TABLE}\n-- +migrate Down\nDROP TABLE a;\n",
    "20240103_more.sql": (
        "-- +migrate Up notransaction\n-- +migrate StatementBegin\n"
        "DO $$ BEGIN ALTER TABLE a ADD j int; END $$\n"
        "-- +migrate StatementEnd\nCREATE INDEX CONCURRENTLY a_j ON a (j);\n"
        "-- +migrate Down\nALTER TABLE a DROP j;\n"
    ),
}
TERN: Files = {
    "001_init.sql": f"{TABLE}\n---- create above / drop below ----\n\nDROP TABLE a;\n",
    "002_more.sql": "ALTER TABLE a ADD j int;\n",
}
POSTGRATOR: Files = {
    "001.do.init.sql": TABLE,
    "001.undo.init.sql": "DROP TABLE a;",
    "002.do.sql": "ALTER TABLE a ADD j int;",
    "002.undo.sql": "ALTER TABLE a DROP j;",
}
JOINED: Files = {
    "20240102_01-init-up.sql": TABLE,
    "20240102_01-init-down.sql": "DROP TABLE a;",
    "20240102_02_scale_up.sql": "ALTER TABLE a ADD j int;",
    "20240102_02_scale_up_down.sql": "ALTER TABLE a DROP j;",
}


ALEMBIC: Files = {
    "alembic.ini": "[alembic]\nscript_location = %(here)s/db\n",
    "db/env.py": "raise RuntimeError('the engine does not run this')\n",
    "db/versions/aaa_init.py": (
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = 'aaa', None\n"
        "def upgrade():\n    op.create_table('a', sa.Column('i', sa.Integer()))\n"
        "def downgrade():\n    op.drop_table('a')\n"
    ),
    "db/versions/bbb_more.py": (
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = 'bbb', 'aaa'\n"
        "def upgrade():\n    op.add_column('a', sa.Column('j', sa.Integer()))\n"
        "    with op.get_context().autocommit_block():\n"
        "        op.create_index('a_j', 'a', ['j'], postgresql_concurrently=True)\n"
        "def downgrade():\n    op.drop_column('a', 'j')\n"
    ),
    "db/versions/ccc_asks.py": (
        "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = 'ccc', 'bbb'\n"
        "def upgrade():\n    bind = op.get_bind()\n"
        "    bind.execute(sa.text('INSERT INTO a (i) VALUES (:i)'), {'i': 7})\n"
        "    number = bind.execute(sa.text('SELECT count(*) FROM a')).scalar()\n"
        "    op.execute(f'CREATE TABLE counted_{number} (i int)')\n"
        "def downgrade():\n    op.get_bind().execute(sa.text('DROP TABLE counted_1'))\n"
    ),
}


def make_graphile() -> Files:
    found: Files = {"current.sql": "-- not committed\n"}
    previous = None
    for number, body in enumerate((TABLE, "--! no-transaction\nALTER TABLE a ADD j int;\n"), 1):
        hash_ = graphile.compute_hash(body, previous, "sha1")
        name, more = (f"{number:06}", "") if number == 1 else (f"{number:06}-more", "--! Message: more\n")
        head = f"--! Previous: {previous or '-'}\n--! Hash: {hash_}\n{more}"
        found[f"committed/{name}.sql"] = f"{head}\n{body}"
        previous = hash_
    return found


FOLDERS: dict[str, tuple[str, Files]] = {
    "numbered": ("native", PLAIN),
    "by date": ("native", DATED),
    "SQLx": ("native", SQLX),
    "golang-migrate": ("native", GOLANG),
    "Prisma": ("prisma", PRISMA),
    "Alembic": ("alembic", ALEMBIC),
    "Diesel": ("diesel", DIESEL),
    "dbmate": ("dbmate", DBMATE),
    "goose": ("goose", GOOSE),
    "Flyway": ("flyway", FLYWAY),
    "Sqitch": ("sqitch", SQITCH),
    "Drizzle": ("drizzle", DRIZZLE),
    "sql-migrate": ("goose", SQL_MIGRATE),
    "tern": ("native", TERN),
    "Postgrator": ("native", POSTGRATOR),
    "up and down in the name": ("native", JOINED),
    "graphile-migrate": ("graphile", make_graphile()),
}
REVERSIBLE = ("Alembic", "SQLx", "golang-migrate", "Diesel", "dbmate", "goose", "Sqitch", "sql-migrate")
ALSO_REVERSIBLE = ("Postgrator", "up and down in the name")


def lay(folder: Path, files: Files) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(params=FOLDERS)
def tool(request: pytest.FixtureRequest, folder: Path) -> str:
    lay(folder, FOLDERS[request.param][1])
    return str(request.param)


def test_a_folder_is_recognised_and_applied_unchanged(
    tool: str, folder: Path, apply: Apply, ask: Any
) -> None:
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask(
        "SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = 'a'::regclass AND attnum > 0"
    )
    assert ask("SELECT count(*) FROM pg_attribute WHERE attrelid = 'a'::regclass AND attname = 'j'") == 1
    assert apply().exit_code == 0


@pytest.mark.parametrize("tool", REVERSIBLE + ALSO_REVERSIBLE, indirect=True)
def test_its_way_back_is_found(tool: str, folder: Path, apply: Apply, run: Any, ask: Any) -> None:
    apply()
    result = run("revert", "--auto", "--skip-backup", "--steps", "9")
    assert result.exit_code == 0, result.output
    assert ask("SELECT to_regclass('a')") is None


def test_flyways_versions_are_numbers_and_what_repeats_comes_last(folder: Path) -> None:
    lay(folder, FLYWAY)
    found = formats.read([Folder("shop", folder)])
    assert [one.version for one in found] == ["1", "1.2", "1.10", "R__view"]
    assert [one.up.options.transaction for one in found] == [True, True, False, True]


def test_what_repeats_runs_again_when_it_has_changed(folder: Path, apply: Apply, ask: Any) -> None:
    lay(folder, FLYWAY)
    apply()
    assert "Nothing to do" in apply().output
    (folder / "R__view.sql").write_text("CREATE OR REPLACE VIEW v AS SELECT i, j, k, 1 AS one FROM a")
    assert "R__view" in apply().output
    assert ask("SELECT count(*) FROM information_schema.columns WHERE table_name = 'v'") == 4
    assert "Nothing to do" in apply().output


def test_what_repeats_stands_behind_versions_that_come_later(folder: Path, apply: Apply, run: Any) -> None:
    lay(folder, FLYWAY)
    apply()
    lay(
        folder,
        {"V2__later.sql": "CREATE TABLE b ()", "R__view.sql": "CREATE OR REPLACE VIEW v AS SELECT * FROM a"},
    )
    lines = [line.split()[:2] for line in run("status").output.splitlines() if "shop/" in line]
    assert lines[3:] == [["pending", "shop/V2__later"], ["pending", "shop/R__view"]]
    assert apply().output.count("✓") == 2


def test_what_repeats_stays_when_versions_are_taken_back(
    folder: Path, apply: Apply, run: Any, ask: Any
) -> None:
    lay(folder, {"V1__a.sql": "CREATE TABLE a ()", "U1__a.sql": "DROP TABLE a", "R__v.sql": "SELECT 1"})
    assert "DROP TABLE a" in run("bundle", "--undo").output
    apply()
    result = run("revert", "--auto", "--skip-backup")
    assert result.exit_code == 0, result.output
    assert "V1__a" in result.output
    assert ask("SELECT to_regclass('a')") is None


def test_flyways_placeholders_come_from_its_own_variables(
    folder: Path, apply: Apply, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(folder, {"V1__a.sql": "CREATE TABLE ${name} (i int)"})
    assert "FLYWAY_PLACEHOLDERS_NAME" in apply().output
    monkeypatch.setenv("FLYWAY_PLACEHOLDERS_NAME", "filled")
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('filled')::text") == "filled"


def test_flyways_checksum_is_that_of_flyway_itself(tmp_path: Path) -> None:
    file = tmp_path / "V1__a.sql"
    file.write_bytes(b"\xef\xbb\xbfcreate table t (\r\n  i int\r\n);\r\n")
    other = tmp_path / "V2__a.sql"
    other.write_bytes(b"create table t (\n  i int\n);\n")
    assert flyway.compute_checksum(file) == flyway.compute_checksum(other)


def test_a_reworked_change_of_sqitch_keeps_its_first_script(folder: Path) -> None:
    plan = (
        SQITCH["sqitch.plan"]
        + "@v2 2024-01-04T12:00:00Z A <a@x.y> # t\ninit 2024-01-05T12:00:00Z A <a@x.y> # r\n"
    )
    lay(folder, SQITCH | {"sqitch.plan": plan, "deploy/init@v1.sql": "SELECT 1"})
    assert [one.label for one in formats.read([Folder("shop", folder)])] == ["init@v1", "more", "init"]


def test_what_sqitch_verifies_is_checked_only_where_its_settings_say_so(folder: Path, apply: Apply) -> None:
    broken = {"verify/init.sql": "BEGIN;\nSELECT made_later();\nROLLBACK;\n"}
    lay(folder, SQITCH | broken)
    assert "made_later" in apply().output
    (folder / "sqitch.conf").unlink()
    (folder / "sqitch.plan").rename(folder / "shop.plan")
    assert apply().exit_code == 0


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (DBMATE | {"20240104120000_c.sql": "SELECT 1;\n-- migrate:up\nSELECT 1;"}, "before `-- migrate:up`"),
        (GOOSE | {"00003_x.sql": "-- +goose Up -- x\n-- +goose Up\nSELECT 1;"}, "no annotation"),
        (PRISMA | {"migration_lock.toml": 'provider = "mysql"'}, "not for PostgreSQL"),
        (PRISMA | {"20240104120000_c/other.sql": ""}, "no migration.sql"),
        (FLYWAY | {"V1.2.0__again.sql": "SELECT 1"}, "same version"),
        (SQITCH | {"sqitch.conf": "[core]\n\tengine = mysql\n"}, "for mysql"),
        (
            SQITCH | {"sqitch.plan": SQITCH["sqitch.plan"] + "gone 2024-01-05T12:00:00Z A <a@x.y> # r\n"},
            "not there",
        ),
        (make_graphile() | {"committed/000001.sql": make_graphile()["committed/000001.sql"] + "x"}, "edited"),
    ],
)
def test_what_cannot_be_run_as_its_tool_would_is_refused_by_name(
    folder: Path, files: Files, word: str
) -> None:
    lay(folder, files)
    with pytest.raises(FolderRefused, match=word):
        formats.read([Folder("shop", folder)])


@pytest.mark.parametrize(
    ("names", "versions"),
    [
        (["00.05.00_02_b.sql", "00.05.00_10_c.sql", "00.05.00_01_a.sql"], ["0.5.0.1", "0.5.0.2", "0.5.0.10"]),
        (["20240102_130000_b.sql", "20240102_090000_a.sql"], ["20240102.90000", "20240102.130000"]),
        (["2024-01-02-2-b.sql", "2024-01-02-1-a.sql"], ["20240102.1", "20240102.2"]),
        (["0001_2024_report.sql", "0002_scale_up.sql"], ["1", "2"]),
    ],
)
def test_a_number_within_a_day_or_a_release_is_part_of_the_version(
    folder: Path, names: list[str], versions: list[str]
) -> None:
    lay(folder, dict.fromkeys(names, "SELECT 1"))
    assert [one.version for one in formats.read([Folder("shop", folder)])] == versions


def test_a_program_between_the_files_is_not_left_out_in_silence(folder: Path, apply: Apply) -> None:
    lay(
        folder,
        {"001_a.sql": TABLE, "002_b.py": "", "003_c.sql": "SELECT 1", "003_c.py": "", "004_test.sql": ""},
    )
    assert "002_b.py" in apply().output


def test_an_error_has_its_place_in_a_file_of_several_parts(folder: Path, apply: Apply) -> None:
    lay(folder, {"1_a.sql": "-- migrate:up\nSELECT 1;\nSELECT nothing;\n-- migrate:down\nSELECT 1;\n"})
    assert "1_a.sql:3:8" in apply().output


def test_a_changed_way_back_is_no_edited_migration(folder: Path, apply: Apply) -> None:
    lay(folder, DBMATE)
    apply()
    lay(folder, {"20240102120000_init.sql": DBMATE["20240102120000_init.sql"] + "SELECT 1;\n"})
    assert apply().exit_code == 0


def test_formats_do_not_take_each_other_for_their_own(tmp_path: Path) -> None:
    for name, (expected, files) in FOLDERS.items():
        lay(tmp_path / name, files)
        assert formats.recognise(tmp_path / name) == expected


def test_a_revision_that_asks_the_database_runs_inside_the_migrations_transaction(
    folder: Path, apply: Apply, ask: Any
) -> None:
    broken = ALEMBIC["db/versions/ccc_asks.py"].replace(
        "def downgrade", "    bind.commit()\n    1 / 0\ndef downgrade"
    )
    lay(folder, ALEMBIC | {"db/versions/ccc_asks.py": broken})
    result = apply()
    assert "division by zero" in result.output
    assert "ccc_asks.py" in result.output
    assert ask("SELECT count(*) FROM a") == 0
    lay(folder, ALEMBIC)
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('counted_1')::text") == "counted_1"


def test_revisions_of_a_branch_that_was_merged_later_are_not_out_of_order(folder: Path, apply: Apply) -> None:
    lay(folder, ALEMBIC)
    apply()
    branch = "from alembic import op\nrevision, down_revision = {}, {}\ndef upgrade():\n    pass\n"
    lay(
        folder,
        {
            "db/versions/abb_other.py": branch.format("'abb'", "'aaa'"),
            "db/versions/ddd_merge.py": branch.format("'ddd'", "('ccc', 'abb')"),
        },
    )
    result = apply()
    assert result.exit_code == 0, result.output
