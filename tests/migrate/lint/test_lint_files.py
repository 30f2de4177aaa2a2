"""What is new, what is taken back, what a DO block hides: one statement is a hazard here and none there."""

from collections.abc import Callable
from pathlib import Path

from tollbook.migrate import pieces
from tollbook.migrate.files import Folder
from tollbook.migrate.lint import Lint, lint

Write = Callable[..., Path]
TABLE = "CREATE TABLE parcels (id bigint PRIMARY KEY, size integer);"
DOWN = "DROP TABLE parcels;"
INDEX = "CREATE INDEX parcels_size ON parcels (size);"


def look(folder: Path, *pending: str) -> Lint:
    wanted = {f"shop/{label}" for label in pending} or None
    return lint([Folder("shop", folder)], pending=wanted, ask_squawk=False)


def rules(found: Lint) -> list[str]:
    return [finding.rule for finding in found.findings]


def test_what_the_same_file_makes_is_new(folder: Path, write: Write) -> None:
    write("0001_a", up=f"{TABLE} {INDEX}", down=DOWN)
    assert rules(look(folder)) == []


def test_without_knowing_what_is_pending_an_earlier_file_is_taken_for_applied(
    folder: Path, write: Write
) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    write("0002_b", up=INDEX, down="DROP INDEX parcels_size;")
    assert rules(look(folder)) == ["drop-index", "create-index"]


def test_what_an_earlier_pending_file_makes_is_new(folder: Path, write: Write) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    write("0002_b", up=INDEX, down="DROP INDEX parcels_size;")
    assert rules(look(folder, "0001_a", "0002_b")) == []


def test_what_is_applied_is_not_looked_at_but_known(folder: Path, write: Write) -> None:
    write("0001_a", up=f"{TABLE} ALTER TABLE elsewhere DROP COLUMN x;")
    write("0002_b", up="ALTER TABLE parcels ALTER size TYPE bigint;", down="SELECT 1;")
    found = look(folder, "0002_b")
    assert rules(found) == ["change-column-type"]
    assert "from integer to bigint" in found.findings[0].sentence
    assert found.files == 2  # up and down of 0002


def test_a_type_that_the_files_do_not_say_is_a_warning(folder: Path, write: Write) -> None:
    write("0001_a", up="ALTER TABLE elsewhere ALTER size TYPE bigint;", down="SELECT 1;")
    [finding] = look(folder).findings
    assert (finding.severity, finding.rule) == ("warning", "change-column-type")


def test_a_down_file_may_take_back_what_its_up_file_made(folder: Path, write: Write) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    write(
        "0002_b",
        up="ALTER TABLE parcels ADD COLUMN note text; CREATE SCHEMA desk; CREATE TYPE hue AS ENUM ('red');",
        down="DROP TYPE hue; DROP SCHEMA desk; ALTER TABLE parcels DROP COLUMN note;",
    )
    assert rules(look(folder)) == []


def test_a_down_file_that_loses_more_is_a_hazard(folder: Path, write: Write) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    write(
        "0002_b", up="ALTER TABLE parcels ADD COLUMN note text;", down="ALTER TABLE parcels DROP COLUMN size;"
    )
    assert rules(look(folder)) == ["drop-column"]


def test_a_down_file_leaves_no_trace_for_later_files(folder: Path, write: Write) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    write("0002_b", up="ALTER TABLE parcels ADD CONSTRAINT s CHECK (size IS NOT NULL) NOT VALID;",
          down="ALTER TABLE parcels DROP CONSTRAINT s;")  # fmt: skip
    write("0003_c", up="ALTER TABLE parcels VALIDATE CONSTRAINT s;", down="SELECT 1;")
    write("0004_d", up="ALTER TABLE parcels ALTER size SET NOT NULL; ALTER TABLE parcels DROP CONSTRAINT s;",
          down="ALTER TABLE parcels ALTER size DROP NOT NULL;")  # fmt: skip
    assert rules(look(folder)) == ["drop-not-null"]


def test_not_null_by_a_check_in_steps_is_no_hazard(folder: Path, write: Write) -> None:
    write("0001_a", up=TABLE)
    write("0002_b", up="ALTER TABLE parcels ADD CONSTRAINT s CHECK (size IS NOT NULL) NOT VALID;")
    write("0003_c", up="ALTER TABLE parcels VALIDATE CONSTRAINT s;")
    write("0004_d", up="ALTER TABLE parcels ALTER size SET NOT NULL; ALTER TABLE parcels DROP CONSTRAINT s;")
    assert {finding.severity for finding in look(folder).findings} == {"notice"}


def test_a_commit_of_the_files_own_lets_the_lock_go(folder: Path, write: Write) -> None:
    add = "ALTER TABLE elsewhere ADD CONSTRAINT s CHECK (size > 0) NOT VALID;"
    validate = "ALTER TABLE elsewhere VALIDATE CONSTRAINT s;"
    write("0001_a", up=f"BEGIN; {add} {validate} COMMIT;", down="SELECT 1;")
    write("0002_b", up=f"BEGIN; {add} COMMIT; BEGIN; {validate} COMMIT;", down="SELECT 1;")
    found = [one for one in look(folder).findings if one.rule == "validate-in-same-transaction"]
    assert [Path(one.place.path).name for one in found] == ["0001_a.up.sql"]


def test_a_search_path_says_which_table_is_meant(folder: Path, write: Write) -> None:
    write("0001_a", up="CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, n int);", down="SELECT 1;")
    write("0002_b", up="SET search_path = b; CREATE TABLE t (id bigint PRIMARY KEY, n int); "
          "CREATE INDEX ON t (n); CREATE INDEX ON a.t (n);", down="SELECT 1;")  # fmt: skip
    found = look(folder).findings
    assert [one.rule for one in found] == ["create-index"]
    assert "a.t" in found[0].sentence


def test_a_new_namesake_in_another_schema_hides_nothing(folder: Path, write: Write) -> None:
    write("0001_a", up="CREATE TABLE side.orders (id bigint PRIMARY KEY); TRUNCATE orders;", down="SELECT 1;")
    assert rules(look(folder)) == ["truncate"]


def test_a_statement_in_a_block_is_found_on_its_own_line(folder: Path, write: Write) -> None:
    write(
        "0001_a",
        up="SELECT 1;\nDO $$\nBEGIN\n  -- a word\n  DROP TABLE elsewhere;\nEND $$;\n",
        down="SELECT 1;",
    )
    [finding] = look(folder).findings
    assert (finding.rule, finding.place.line) == ("drop-table", 5)


def test_a_block_that_cannot_be_read_says_so(folder: Path, write: Write) -> None:
    write("0001_a", up="DO LANGUAGE plpython3u $$plpy.execute('DROP TABLE x')$$;", down="SELECT 1;")
    [finding] = look(folder).findings
    assert finding.rule == "opaque-sql"
    assert "another language" in finding.sentence


def test_a_renamed_table_is_still_the_one_it_was(folder: Path, write: Write) -> None:
    write("0001_a", up=f"{TABLE} ALTER TABLE parcels RENAME TO boxes; CREATE INDEX ON boxes (size);")
    write("0002_b", up="ALTER TABLE boxes ALTER size TYPE bigint;")
    assert [one.sentence[:36] for one in look(folder).findings if one.severity == "error"] == [
        "boxes.size from integer to bigint wr"
    ]


def test_a_file_that_does_not_parse_is_an_error_with_its_line(folder: Path, write: Write) -> None:
    write("0001_a", up="SELECT 1;\nALTER TABEL x;", down="SELECT 1;")
    [finding] = look(folder).findings
    assert (finding.rule, finding.severity, finding.place.line) == ("refused", "error", 2)


def test_rows_of_a_copy_and_umlauts_move_no_line(folder: Path, write: Write) -> None:
    write(
        "0001_a",
        up=f"-- übergroße Pakete\n{TABLE}\nCOPY parcels (id, size) FROM stdin;\n1\t2\n\\.\nTRUNCATE fremd;\n",
        down="SELECT 1;",
    )
    [finding] = look(folder).findings
    assert (finding.rule, finding.place.line) == ("truncate", 6)


def test_up_and_down_in_one_file_are_looked_at_each_by_itself(folder: Path) -> None:
    """As dbmate has them: a comment above the one allows nothing of the other."""
    (folder / "20240101000000_a.sql").write_text(
        f"-- migrate:up\n{TABLE}\n-- tollbook: allow drop-table because moved\nDROP TABLE moved;\n"
        f"-- migrate:down\n{DOWN}\nDROP TABLE other;\n"
    )
    found = look(folder)
    assert [(one.rule, one.place.line) for one in found.findings] == [("drop-table", 7)]
    assert (found.files, found.allowed) == (1, 1)


def test_a_down_file_is_missing_only_where_there_are_such(folder: Path, write: Write) -> None:
    (folder / "V1__a.sql").write_text("CREATE TABLE a (id bigint PRIMARY KEY);")
    assert rules(look(folder)) == []
    (folder / "V1__a.sql").unlink()
    write("0001_a", up="CREATE TABLE a (id bigint PRIMARY KEY);")
    assert rules(look(folder)) == ["missing-down"]


def test_of_thousands_of_rows_the_first_insert_stands_for_all(folder: Path, write: Write) -> None:
    inserts = "INSERT INTO parcels VALUES (1, 2);\n" * (pieces.ASCII_CHARACTERS_MIN // 34)
    write("0001_a", up=f"{TABLE}\n{inserts}{INDEX}", down=DOWN)
    found = look(folder)
    assert [(one.rule, one.place.line) for one in found.findings] == [("insert-without-columns", 2)]
    assert found.statements > 7000


def test_what_is_dropped_and_made_again_in_one_transaction_is_a_notice(folder: Path, write: Write) -> None:
    view = "DROP VIEW v; CREATE VIEW v AS SELECT 1 AS a;"
    function = "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = '' AS 'SELECT 1';"
    write("0001_a", up=f"{view} DROP FUNCTION f(); {function}", down="SELECT 1;")
    assert [(one.rule, one.severity) for one in look(folder).findings] == [
        ("drop-function", "notice"),
        ("drop-view", "notice"),
    ]


def test_a_part_of_a_long_statement_is_found_on_its_own_line(folder: Path, write: Write) -> None:
    write(
        "0001_a",
        up="CREATE TABLE é (\n  id bigint PRIMARY KEY,\n  at timestamp\n);\n"
        "ALTER TABLE elsewhere\n  ADD COLUMN a int,\n  -- tollbook: allow add-check because it is small\n"
        "  ADD CONSTRAINT c CHECK (a > 0),\n  ADD UNIQUE (a);",
        down="SELECT 1;",
    )
    found = look(folder)
    assert [(one.rule, one.place.line) for one in found.findings] == [
        ("timestamp-without-zone", 3),
        ("add-unique", 9),
    ]
    assert found.allowed == 1


def test_what_one_folder_makes_is_new_to_the_next_too(folder: Path, write: Write, tmp_path: Path) -> None:
    write("0001_a", up=TABLE, down=DOWN)
    other = tmp_path / "desk"
    write("0001_old", at=other, up="SELECT 1;", down="SELECT 1;")
    write("0002_new", at=other, up=INDEX, down="SELECT 1;")
    folders = [Folder("shop", folder), Folder("desk", other)]
    found = lint(folders, pending={"shop/0001_a", "desk/0002_new"}, ask_squawk=False)
    assert rules(found) == []


def test_an_update_that_is_not_the_same_twice_is_not_cut_in_batches(folder: Path, write: Write) -> None:
    sets = ("n = n + 1", "(a, b) = (SELECT 1, 2)", "at = now()", "j['a'] = '1'", "n = 1")
    write("0001_a", up="\n".join(f"UPDATE t SET {one};" for one in sets), down="SELECT 1;")
    assert [bool(one.safe_sql) for one in look(folder).findings] == [False, False, False, False, True]
