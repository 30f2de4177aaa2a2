"""Old history made one file; databases before, after and in the middle of it."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import formats
from tollbook.migrate import squash as squashing
from tollbook.migrate.errors import FolderRefused
from tollbook.migrate.files import Folder

Run = Callable[..., Result]


@pytest.fixture
def shop(write: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i serial PRIMARY KEY, n text)", down="DROP TABLE a")
    write(
        "0002_b",
        up="INSERT INTO a (n) VALUES ('x'), ('y'); ALTER TABLE a DROP n, ADD m int DEFAULT 3, ADD k int",
        backfill="-- tollbook: table=a key=i\nUPDATE a SET k = i + 5 WHERE i BETWEEN :first AND :last",
    )
    write(
        "0003_c",
        up="""CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM a';
            ALTER TABLE a ALTER k SET NOT NULL, ALTER k SET DEFAULT 0;
            CREATE MATERIALIZED VIEW kept AS SELECT i FROM a; CREATE TABLE notes (i int);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
                AS 'BEGIN INSERT INTO public.notes VALUES (NEW.i); RETURN NULL; END';
            CREATE TRIGGER noted AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION note();
            ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC""",
        down="""ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM PUBLIC;
            ALTER TABLE a ALTER k DROP NOT NULL, ALTER k DROP DEFAULT; DROP FUNCTION f;
            DROP TRIGGER noted ON a; DROP FUNCTION note; DROP TABLE notes; DROP MATERIALIZED VIEW kept""",
    )
    up = "ALTER TABLE a ADD made timestamptz DEFAULT clock_timestamp(); CREATE VIEW v AS SELECT i, m FROM a"
    write("0004_d", up=up, down="DROP VIEW v; ALTER TABLE a DROP made")


def squash(run: Run) -> dict[str, Any]:
    result = run("squash", "--to", "3", "--rows", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_new_database_has_the_same_by_the_new_road(
    shop: None, run: Run, apply: Run, folder: Path, ask: Any
) -> None:
    done = squash(run)
    assert done["rows"] == 2
    assert [path.name for path in sorted(folder.glob("*.sql"))] == [
        "0003_squashed.up.sql",
        "0004_d.down.sql",
        "0004_d.up.sql",
    ]
    assert len(list((folder / "squashed").iterdir())) == 6
    assert apply().exit_code == 0
    assert ask("INSERT INTO a DEFAULT VALUES RETURNING i") == 3
    assert ask("SELECT sum(k) FROM a") == 13
    assert ask("SELECT count(*) FROM kept") == 2
    assert run("status").exit_code == 0
    assert run("drift").exit_code == 0


@pytest.mark.parametrize("to", ["3", "4"])
def test_a_database_that_has_them_all_goes_on(
    shop: None, run: Run, apply: Run, write: Any, ask: Any, to: str
) -> None:
    assert apply("--to", to).exit_code == 0
    squash(run)
    assert run("status").exit_code == (0 if to == "4" else 3)
    write("0005_e", up="CREATE TABLE e (i int)", down="DROP TABLE e")
    result = apply()
    assert result.exit_code == 0, result.output
    assert run("drift").exit_code == 0
    assert run("verify").exit_code == 0
    assert ask("SELECT count(*) FROM a") == 2
    # What was applied by its own file is taken back by its own down statements, never by the squashed one.
    back = run("revert", "--auto", "--skip-backup", "--steps", "3")
    assert back.exit_code == 0, back.output
    assert ask("SELECT count(*) FROM a") == 2
    assert ask("SELECT to_regproc('f')") is None


def test_a_database_in_the_middle_is_refused_and_told_what_to_do(
    shop: None, run: Run, apply: Run, folder: Path
) -> None:
    assert apply("--to", "2").exit_code == 0
    squash(run)
    result = apply()
    assert result.exit_code == 1
    assert f"apply --dir shop={folder}/squashed" in result.output
    assert apply(folders=(f"shop={folder}/squashed",)).exit_code == 0
    assert apply().exit_code == 0
    assert run("drift").exit_code == 0


def test_rows_are_kept_or_left_as_asked(shop: None, run: Run, folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    result = run("squash", "--to", "3")
    assert result.exit_code == 2
    assert "insert 2 rows" in result.output
    assert sorted(path.name for path in folder.iterdir()) == before


def test_roles_and_owners_are_not_lost_unseen(write: Any, run: Run, folder: Path) -> None:
    write("0001_a", up="CREATE ROLE squash_reader; CREATE TABLE a (i int)")
    write("0002_b", up="ALTER TABLE a OWNER TO squash_reader")
    result = run("squash", "--to", "2")
    assert result.exit_code == 1
    assert "squash_reader" in result.output
    assert len(list(folder.iterdir())) == 2


def test_a_folder_of_another_tool_is_left_alone(run: Run, folder: Path) -> None:
    for number in (1, 2):
        text = f"-- migrate:up\nCREATE TABLE t{number} (i int);\n-- migrate:down\nDROP TABLE t{number};\n"
        (folder / f"2024010{number}_t.sql").write_text(text)
    result = run("squash", "--to", "20240102")
    assert result.exit_code == 1
    assert "dbmate" in result.output
    assert len(list(folder.iterdir())) == 2


def test_killed_at_any_step_no_file_is_lost_and_the_next_run_ends_it(
    shop: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(path for path in folder.iterdir() if path.name[:4] <= "0003")
    texts = {path.name: path.read_bytes() for path in files}
    new, archive = folder / "0003_squashed.up.sql", folder / "squashed"
    text = "-- tollbook: replaces=1..3\nSELECT 1;\n"
    place = Folder("shop", folder)
    step = 0
    for step in range(100):

        def stop(_: int, left: Iterator[int] = iter(range(step))) -> None:  # noqa: B008
            next(left)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stop)
            try:
                squashing.put_in_place(new, text, files)
            except StopIteration:
                pass
            else:
                break
        for name, content in texts.items():
            assert content in {path.read_bytes() for path in folder.rglob(name)}
        with suppress(FolderRefused):  # two have one number then, and nothing is applied
            versions = [one.label for one in formats.read([place])]
            assert versions[-2] == ("0003_squashed" if len(versions) == 2 else "0003_c")
        if squashing.finish(place) is None and not new.exists():
            assert all(path.exists() for path in files)
            squashing.put_in_place(new, text, files)
        assert {path.name: path.read_bytes() for path in archive.glob("*.sql")} == texts
        assert [path.name[:6] for path in sorted(folder.glob("*.sql"))] == ["0003_s", "0004_d", "0004_d"]
        new.unlink()
        for path in files:
            (archive / path.name).rename(path)
    assert step > len(files)


def test_a_squashed_file_that_is_edited_is_told_also_where_it_never_ran(
    shop: None, run: Run, apply: Run, folder: Path
) -> None:
    assert apply().exit_code == 0
    squash(run)
    path = folder / "0003_squashed.up.sql"
    path.write_text(path.read_text() + "CREATE TABLE more (i int);\n")
    assert "1 edited" in run("status").output
    result = apply()
    assert result.exit_code == 1
    assert "0003_squashed was edited after it was squashed" in result.output


def test_what_is_filled_is_filled_without_rows_too(write: Any, run: Run, apply: Run, ask: Any) -> None:
    write("0001_a", up="CREATE TABLE a (i int); INSERT INTO a VALUES (1)")
    write("0002_b", up="CREATE MATERIALIZED VIEW kept AS SELECT i FROM a")
    result = run("squash", "--to", "2", "--no-rows")
    assert result.exit_code == 0, result.output
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM kept") == 0
