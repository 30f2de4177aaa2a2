"""What lies in real folders beside plain SQL: programs, templates, several files of one number."""

from pathlib import Path

import pytest

from tollbook.migrate import Folder, formats
from tollbook.migrate.errors import FolderRefused
from tollbook.migrate.files import Migration

from .test_formats import TABLE, Files, lay


def read(folder: Path, files: Files) -> list[Migration]:
    lay(folder, files)
    return formats.read([Folder("shop", folder)])


def test_both_ways_of_a_program_are_one_migration_whose_way_back_may_be_sql(folder: Path) -> None:
    _, both, forth = read(
        folder,
        {
            "1510262030_start.up.sql": TABLE,
            "1516643303_auth.up.go": "package x",
            "1516643303_auth.down.go": "package x",
            "1522178770_tags.up.go": "package x",
            "1522178770_tags.down.sql": "DROP TABLE a",
            "migrations.go": "package x",
        },
    )
    assert both.label == "1516643303_auth"
    assert both.up.refusal is not None
    assert both.down is None
    assert forth.down is not None
    assert forth.down.text == "DROP TABLE a"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("02_b.py", "Python"),
        ("2_b.rb", "Ruby"),
        ("000002_b.up.tmpl", "a template"),
        ("20240101000000_b.up.fizz", "fizz"),
        ("20240101000000_b.exs", "Elixir"),
        ("05_b.sql.postgres", "of another ending"),
    ],
)
def test_what_is_no_sql_is_named_and_not_passed_over(folder: Path, name: str, kind: str) -> None:
    found = read(folder, {"1_a.sql": TABLE, name: ""})
    assert len(found) == 2
    assert found[1].up.refusal is not None
    assert kind in found[1].up.refusal.what


@pytest.mark.parametrize(
    "name", ["01_tables.json", "000001_a.up.tmpl", "001-changes.xml", "01_init.exs", "1_a.up.pgsql"]
)
def test_a_folder_without_sql_is_no_folder_with_nothing_to_do(folder: Path, name: str) -> None:
    with pytest.raises(FolderRefused, match="no SQL"):
        read(folder, {name: "", "README.md": ""})


def test_a_folder_that_waits_for_its_first_migration_has_nothing_to_do(folder: Path) -> None:
    assert (
        read(folder, dict.fromkeys((".gitkeep", "README.md", "embed.go", "mod.rs", "__init__.py"), "")) == []
    )


def test_what_is_for_another_database_alone_is_passed_over_where_files_are_for_several(folder: Path) -> None:
    names = ("1_a.up.sql", "1_a.mysql.up.sql", "2_b.mysql.up.sql", "2_b.mysql.down.sql")
    assert [one.label for one in read(folder, dict.fromkeys(names, ""))] == ["1_a"]


def test_pops_files_that_commit_by_themselves_belong_to_their_migration(folder: Path) -> None:
    first, second = read(
        folder,
        {
            "20240101000000_ids.autocommit.up.sql": TABLE,
            "20240101000000_ids.mysql.autocommit.up.sql": "`",
            "20240101000000_ids.down.sql": "DROP TABLE a",
            "20240102000000_more.postgres.autocommit.up.sql": "SELECT 1",
            "20240102000000_more.cockroach.autocommit.up.sql": "`",
        },
    )
    assert first.label == "20240101000000_ids"
    assert first.up.text == TABLE
    assert first.down is not None
    assert second.up.text == "SELECT 1"


ATLAS = "-- atlas:txtar\n\n{}-- migration.sql --\nCREATE TABLE a ();\n\n-- down.sql --\nDROP TABLE a;\n"


def test_atlas_way_back_in_the_same_file_does_not_run_with_the_rest(folder: Path) -> None:
    (one,) = read(folder, {"20240101000000.sql": ATLAS.format("")})
    assert "DROP" not in one.up.text
    assert one.down is not None
    assert "CREATE" not in one.down.text
    assert one.up.refusal is None


def test_atlas_checks_are_never_left_unasked(folder: Path) -> None:
    (one,) = read(folder, {"1_a.sql": ATLAS.format("-- checks/a.sql --\nSELECT false;\n\n")})
    assert one.up.refusal is not None
    assert one.up.refusal.place is not None
    assert one.up.refusal.place.line == 3


def test_files_of_sql_migrate_may_share_a_number(folder: Path) -> None:
    text = "-- +migrate Up\nSELECT 1;\n-- +migrate Down\n"
    names = ("2-b.sql", "1-a.sql", "1-a-2.sql", "10-c.sql")
    found = read(folder, dict.fromkeys(names, text))
    assert [one.label for one in found] == ["1-a-2", "1-a", "2-b", "10-c"]
    assert [one.version for one in found] == ["1", "1-a", "2", "10"]
    with pytest.raises(FolderRefused, match="same number"):
        read(folder, dict.fromkeys(names, text.replace("migrate", "goose")))


def test_a_migration_of_diesels_without_a_number_is_not_passed_over(folder: Path) -> None:
    files = {"2024-01-02-120000_b/up.sql": "", "-1528395787_privileged/up.sql": "", ".git/up.sql": ""}
    assert [one.label for one in read(folder, files)] == ["-1528395787_privileged", "2024-01-02-120000_b"]


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"V1__a.sql": TABLE, "U2__b.sql": ""}, "would never run"),
        ({"V1__a.sql": TABLE, "x/R__v.sql": "", "y/R__v.sql": ""}, "same name"),
    ],
)
def test_what_flyway_would_not_run_is_not_passed_over(folder: Path, files: Files, word: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
    with pytest.raises(FolderRefused, match=word):
        read(folder, files)


def test_an_undo_that_a_baseline_covers_is_of_no_concern(folder: Path) -> None:
    assert len(read(folder, {"B2__all.sql": TABLE, "U1__a.sql": "", "U2__b.sql": ""})) == 1


def test_a_migration_of_refinerys_in_rust_is_named(folder: Path) -> None:
    _, one = read(folder, {"V1__a.sql": TABLE, "V2__b.rs": "", "mod.rs": ""})
    assert one.up.refusal is not None
    assert "Rust, which only refinery" in one.up.refusal.what


def test_of_folders_for_several_databases_that_for_another_is_not_advised(folder: Path) -> None:
    with pytest.raises(FolderRefused, match="postgresql: give that by --dir"):
        read(folder, {f"{name}/2019-09-12-100000_a/up.sql": "" for name in ("mysql", "postgresql", "sqlite")})
