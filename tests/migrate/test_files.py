"""Migrations as they lie in folders."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollbook.migrate import files, formats
from tollbook.migrate.errors import FolderRefused, WrongUsage, find, point
from tollbook.migrate.files import Folder

from .conftest import Write


def read(folder: Path) -> list[files.Migration]:
    return formats.read([Folder("shop", folder)])


def test_versions_are_ordered_as_numbers_not_as_text(folder: Path, write: Write) -> None:
    for label in ("10_ten", "2_two", "0001_one", "00020_twenty"):
        write(label, up="SELECT 1")
    assert [migration.version for migration in read(folder)] == ["1", "2", "10", "20"]


def test_the_parts_of_a_migration_are_found_beside_each_other(folder: Path, write: Write) -> None:
    write("0001_a", up="SELECT 1", down="SELECT 2", check="SELECT true")
    (migration,) = read(folder)
    assert migration.id == "shop/0001_a"
    assert migration.down
    assert migration.check
    assert (migration.up.text, migration.down.text, migration.check.text) == (
        "SELECT 1",
        "SELECT 2",
        "SELECT true",
    )


@pytest.mark.parametrize("other", ["0001_b", "1_a", "01_a"])
def test_a_number_given_twice_is_refused_with_both_names(folder: Path, write: Write, other: str) -> None:
    write("0001_a", up="SELECT 1")
    write(other, up="SELECT 1")
    with pytest.raises(FolderRefused, match=r"0001_a.*same number|same number.*0001_a") as refused:
        read(folder)
    assert other in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a.up.sql", "a.down.sql", f"{'1' * 41}_a.sql", "0001_b.undo.sql", "b.rollback.sql"]
)
def test_a_file_that_would_never_run_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_text("SELECT 1")
    with pytest.raises(FolderRefused) as refused:
        read(folder)
    assert name in str(refused.value)


def test_a_down_file_without_its_up_file_is_refused(folder: Path, write: Write) -> None:
    write("0001_a", down="SELECT 1")
    with pytest.raises(FolderRefused, match=r"0001_a\.up\.sql"):
        read(folder)


def test_what_editors_leave_behind_is_no_migration(folder: Path, write: Write) -> None:
    write("0001_a", up="SELECT 1")
    (folder / "._0001_a.up.sql").write_bytes(b"\xff")
    (folder / "README.md").write_text("words")
    assert len(read(folder)) == 1


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=200))
def test_the_checksum_knows_neither_line_ends_nor_a_byte_order_mark(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("eol") / "0001_a.up.sql"
    scripts: list[files.Script] = []
    for content in (text.encode(), text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode()):
        path.write_bytes(content)
        scripts.append(files.read_script(path))
    assert len({script.checksum for script in scripts}) == 1
    assert {script.text for script in scripts} == {text}


def test_any_other_change_changes_the_checksum(folder: Path, write: Write) -> None:
    write("0001_a", up="SELECT 1")
    first = read(folder)[0].up.checksum
    write("0001_a", up="SELECT 1 ")
    assert read(folder)[0].up.checksum != first


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"SELECT 1;\n-- caf\xe9", r"0001_a\.up\.sql:2:7: .*UTF-8"),
        ("SELECT 1".encode("utf-16"), "UTF-16"),
        (b"SELECT\n\n '\0'", r"up\.sql:3.*NUL"),
    ],
)
def test_what_is_not_utf8_text_is_refused_with_its_line(folder: Path, content: bytes, says: str) -> None:
    (folder / "0001_a.up.sql").write_bytes(content)
    with pytest.raises(FolderRefused, match=says):
        read(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderRefused, match="nowhere"):
        read(tmp_path / "nowhere")


def test_two_folders_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(WrongUsage, match="shop"):
        formats.read([Folder("shop", folder), Folder("shop", folder)])


def test_folders_run_in_the_order_they_are_given(folder: Path, tmp_path: Path, write: Write) -> None:
    write("0009_a", up="SELECT 1")
    write("0001_b", at=tmp_path / "other", up="SELECT 1")
    found = formats.read([Folder("shop", folder), Folder("other", tmp_path / "other")])
    assert [migration.id for migration in found] == ["shop/0009_a", "other/0001_b"]


@pytest.mark.parametrize(("last", "number", "version"), [("0007_a", "0008", "8"), ("1.9_a", "1.10", "1.10")])
def test_a_new_pair_gets_the_next_number(
    folder: Path, write: Write, last: str, number: str, version: str
) -> None:
    write(last, up="SELECT 1")
    up, down = formats.create_pair(Folder("shop", folder), "Add refunds!")
    assert (up.name, down.name) == (f"{number}_add_refunds.up.sql", f"{number}_add_refunds.down.sql")
    assert read(folder)[-1].version == version


@pytest.mark.parametrize(
    ("name", "words"),
    [("20240101000000_a/migration.sql", "as prisma has them"), ("1.0/01_a.sql", "--dir .*1.0")],
)
def test_a_new_pair_is_not_written_where_it_would_not_run(folder: Path, name: str, words: str) -> None:
    (folder / name).parent.mkdir()
    (folder / name).write_text("SELECT 1")
    with pytest.raises(WrongUsage, match=words):
        formats.create_pair(Folder("shop", folder), "a")


@given(st.text("a\n\té"), st.integers(0, 30))
def test_a_place_says_the_line_and_the_column_of_its_character(text: str, index: int) -> None:
    index = min(index, len(text))
    place = point("x.sql", text, index, caret=False)
    lines = text[:index].split("\n")
    assert (place.line, place.column) == (len(lines), len(lines[-1]) + 1)
    assert place.line is not None
    assert place.column is not None
    assert find(text, place.line, place.column) == index
