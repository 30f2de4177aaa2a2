"""What is refused before anything is changed: all of it at once, each with what to do."""

from collections.abc import Callable
from typing import Any

import psycopg
from click.testing import Result

Apply = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    for word in words:
        assert word in text, text


def test_an_edited_migration_is_named(write: Any, apply: Apply) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    apply()
    write("0001_a", up="CREATE TABLE a (i bigint)")
    write("0002_b", up="CREATE TABLE b (i int)")
    refused(apply(), "0001_a", "edited")


def test_line_ends_are_no_edit(write: Any, apply: Apply) -> None:
    path = write("0001_a", up="CREATE TABLE a (\ni int)\n")
    apply()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    write("0002_b", up="CREATE TABLE b (i int)")
    assert apply().exit_code == 0


def test_an_applied_migration_whose_file_is_gone_is_named(write: Any, apply: Apply) -> None:
    path = write("0001_a", up="CREATE TABLE a (i int)")
    apply()
    path.unlink()
    write("0002_b", up="CREATE TABLE b (i int)")
    refused(apply(), "0001_a", "gone")


def test_a_number_below_an_applied_one_is_named(write: Any, apply: Apply) -> None:
    write("0002_b", up="CREATE TABLE b (i int)")
    apply()
    write("0001_a", up="CREATE TABLE a (i int)")
    refused(apply(), "0001_a", "0002_b")


def test_everything_wrong_is_named_at_once(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE taken (i int); SELECT 1")
    write("0001_a", up="CREATE TABLE taken (i int)")
    write("0002_b", up="CREATE EXTENSION no_such_thing")
    write("0003_c", up="SELECT 1;\nROLLBACK")
    write("0004_d", up="CREAT TABLE x ()")
    refused(apply(), "taken", "no_such_thing", "0003_c.up.sql:2", "ROLLBACK", "0004_d.up.sql:1:1")
    assert ask("SELECT to_regnamespace('tollbook_migrate')") is None


def test_an_object_that_is_there_may_be_made_if_not_exists(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE taken (i int); CREATE VIEW v AS SELECT 1 AS i; SELECT 1")
    write("0001_a", up="CREATE TABLE IF NOT EXISTS taken (i int); CREATE OR REPLACE VIEW v AS SELECT 2 AS i")
    assert apply().exit_code == 0


def test_an_object_dropped_before_may_be_made_again(write: Any, apply: Apply, ask: Any) -> None:
    ask("CREATE TABLE taken (i int); SELECT 1")
    write("0001_a", up="DROP TABLE taken")
    write("0002_b", up="CREATE TABLE taken (i int)")
    assert apply().exit_code == 0


def test_a_role_without_rights_is_told_which_grant_is_missing(
    write: Any, apply: Apply, migrate_server: Any, url: str
) -> None:
    name = url.split("///")[1].split("?")[0]
    with psycopg.connect(migrate_server.url(name, user="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}_guest; GRANT {name}_guest TO tollbook".encode())
    write("0001_a", up="CREATE TABLE a (i int)")
    refused(
        apply(to=f"{url}&options=-crole%3D{name}_guest"), "GRANT CREATE ON DATABASE", "GRANT CREATE ON SCHEMA"
    )


def test_a_server_that_cannot_be_reached_is_named_without_its_password(write: Any, apply: Apply) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    result = apply(to="postgresql://me:hunter2secret@127.0.0.1:1/nothing")
    refused(result, "127.0.0.1")
    assert "hunter2secret" not in result.output


def test_the_drivers_that_others_write_into_a_url_are_left_out(write: Any, apply: Apply, url: str) -> None:
    write("0001_a", up="CREATE TABLE a (i int)")
    assert apply(to=url.replace("postgresql://", "postgresql+asyncpg://")).exit_code == 0


def test_a_role_of_a_header_is_looked_for_before_anything_runs(
    write: Any, apply: Apply, run: Apply, migrate_server: Any, url: str, ask: Any
) -> None:
    name = url.split("///")[1].split("?")[0]
    write("0001_a", up="CREATE TABLE a (i int)")
    write("0002_b", up="-- A remark.\n-- tollbook: lock_timeout=2s role=nobody\nCREATE TABLE b (i int)")
    write("0003_c", up=f"-- tollbook: role={name}_owner\nCREATE TABLE c (i int)")
    with psycopg.connect(migrate_server.url(name, user="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}_owner".encode())
        words = ("0002_b.up.sql:2", "no role nobody", f'GRANT "{name}_owner" TO "tollbook"')
        for result in (apply(), run("plan")):
            refused(result, *words)
        assert ask("SELECT to_regclass('a')") is None
        connection.execute(f"GRANT {name}_owner TO tollbook WITH INHERIT FALSE, SET TRUE".encode())
        connection.execute(f"CREATE SCHEMA theirs AUTHORIZATION {name}_owner".encode())
    write("0002_b", up="SELECT 1")
    write("0003_c", up=f"-- tollbook: role={name}_owner\nCREATE TABLE theirs.c (i int)")
    result = apply()
    assert result.exit_code == 0, result.output
    write("0003_c", down="-- tollbook: role=nobody\nDROP TABLE theirs.c")
    refused(run("revert", "--auto", "--skip-backup"), "0003_c.down.sql:1", "no role nobody")


def test_a_role_that_a_file_before_makes_is_no_problem(
    write: Any, run: Apply, migrate_server: Any, url: str
) -> None:
    write("0001_a", up="CREATE ROLE newcomer")
    write("0002_b", up="-- tollbook: role=newcomer\nSELECT 1")
    name = url.split("///")[1].split("?")[0]
    result = run("plan", "--live", to=migrate_server.url(name, user="postgres"))
    assert result.exit_code == 3, result.output


def test_what_went_with_a_table_or_a_column_may_be_made_again(write: Any, apply: Apply) -> None:
    view = "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; CREATE INDEX mi ON m (a);"
    write("0001_a", up=f"CREATE TABLE t (i int); CREATE INDEX x ON t (i); {view}")
    write("0002_b", up=f"DROP MATERIALIZED VIEW m; {view}")
    write("0003_c", up="ALTER TABLE t DROP COLUMN i, ADD i bigint; CREATE INDEX x ON t (i)")
    result = apply()
    assert result.exit_code == 0, result.output
    write("0004_d", up=f"DROP MATERIALIZED VIEW m; {view}")
    assert apply().exit_code == 0
