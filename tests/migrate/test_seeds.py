"""Seeds run in order, once for each text, and never on production by mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollbook.migrate import seeds
from tollbook.migrate.files import Folder

Run = Ask = Callable[..., Any]


@pytest.fixture
def seed_file(folder: Path) -> Callable[[str, str], None]:
    place = folder.parent / "seeds"
    place.mkdir()
    return lambda name, text: (place / name).write_text(text) and None


@pytest.fixture
def goods(write: Any, apply: Run) -> None:
    write("0001_goods", up="CREATE TABLE goods (id int PRIMARY KEY, name text);")
    assert apply().exit_code == 0


def names(ask: Ask) -> str:
    return ask("SELECT string_agg(name, ',' ORDER BY id) FROM goods")


def test_seeds_run_in_order_for_their_environment(goods: None, seed_file: Any, run: Run, ask: Ask) -> None:
    seed_file("9_first.sql", "INSERT INTO goods VALUES (1, 'first');")
    seed_file(
        "10_second.sql", "UPDATE goods SET name = name || '+';\nCOPY goods FROM STDIN;\n2\tsecond\n\\.\n"
    )
    seed_file("11_more.dev.sql", "INSERT INTO goods VALUES (3, 'dev');")
    seed_file("11_more.test.sql", "INSERT INTO goods VALUES (3, 'test');")
    done = run("seed", "--json")
    assert [one["seed"] for one in json.loads(done.output)["ran"]] == [
        "shop/9_first.sql",
        "shop/10_second.sql",
        "shop/11_more.dev.sql",
    ]
    assert names(ask) == "first+,second,dev"


def test_a_seed_runs_again_only_when_it_has_changed(
    goods: None, seed_file: Any, run: Run, ask: Ask, folder: Path
) -> None:
    assert f"There are no seeds for dev in {folder.parent}/seeds." in run("seed").output
    upsert = "INSERT INTO goods VALUES (1, '{}') ON CONFLICT (id) DO UPDATE SET name = excluded.name;"
    seed_file("1_goods.sql", upsert.format("old"))
    assert "1 seeded as dev, 0 unchanged" in run("seed").output
    assert "0 seeded as dev, 1 unchanged" in run("seed").output
    seed_file("1_goods.sql", upsert.format("new"))
    assert "1 seeded" in run("seed").output
    assert names(ask) == "new"


def test_a_seed_leaves_nothing_in_the_session_for_the_next(goods: None, seed_file: Any, run: Run) -> None:
    text = "CREATE TEMP TABLE staging (i int); PREPARE a AS SELECT 1; DECLARE c CURSOR WITH HOLD FOR SELECT 1"
    seed_file("1_goods.sql", text)
    seed_file("2_more.sql", text)
    result = run("seed")
    assert "2 seeded" in result.output, result.output


def test_folders_beside_each_other_have_one_folder_of_seeds(
    goods: None, seed_file: Any, run: Run, ask: Ask, write: Any, folder: Path
) -> None:
    write("0001_t", at=folder.parent / "books", up="CREATE TABLE t (i int)")
    seed_file("1_a.sql", "INSERT INTO goods SELECT count(*) FROM goods;")
    done = run("seed", folders=(str(folder), str(folder.parent / "books")))
    assert done.exit_code == 0
    assert ask("SELECT count(*) FROM goods") == 1


def test_a_seed_that_fails_is_rolled_back_and_those_before_it_stay(
    goods: None, seed_file: Any, run: Run, ask: Ask
) -> None:
    seed_file("1_a.sql", "INSERT INTO goods VALUES (1, 'a');")
    seed_file("2_b.sql", "INSERT INTO goods VALUES (2, 'b');\nINSERT INTO goods VALUES (2, 'b');")
    result = run("seed")
    assert result.exit_code == 1
    assert "2_b.sql:2:1" in result.output
    assert names(ask) == "a"
    seed_file("2_b.sql", "INSERT INTO goods VALUES (2, 'b');")
    assert "1 seeded as dev, 1 unchanged" in run("seed").output


def test_production_is_seeded_by_force_alone(goods: None, seed_file: Any, run: Run, ask: Ask) -> None:
    seed_file("1_a.sql", "INSERT INTO goods VALUES (1, 'a');")
    assert run("seed", "--mark", "production").exit_code == 0
    for options in ((), ("--env", "dev"), ("--env", "production")):
        refused = run("seed", *options)
        assert refused.exit_code == 1
        assert "marked as production" in refused.output
    assert names(ask) is None
    assert run("seed", "--force").exit_code == 0
    assert names(ask) == "a"


def test_a_marked_database_takes_the_seeds_of_its_environment_alone(
    goods: None, seed_file: Any, run: Run, ask: Ask
) -> None:
    seed_file("1_a.staging.sql", "INSERT INTO goods VALUES (1, 'staging');")
    seed_file("1_a.dev.sql", "INSERT INTO goods VALUES (1, 'dev');")
    assert run("seed", "--mark", "staging").exit_code == 0
    assert "marked as staging, not as dev" in run("seed", "--env", "dev").output
    assert run("seed").exit_code == 0
    assert names(ask) == "staging"


def test_only_a_server_on_this_machine_is_seeded_without_a_mark() -> None:
    assert all(seeds.is_local(host) for host in ("", "localhost", "127.0.0.1", "/var/run/postgresql"))
    assert not any(seeds.is_local(host) for host in ("db.example", "10.0.0.4", "/cloudsql/p:r:i"))


def test_an_unmarked_database_elsewhere_is_refused(
    goods: None, seed_file: Any, run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "LOCAL_HOSTS", ())
    monkeypatch.setattr(seeds, "CLOUD_SOCKETS", "/")  # so that the test's own server counts as elsewhere
    seed_file("1_a.sql", "INSERT INTO goods VALUES (1, 'a');")
    refused = run("seed")
    assert refused.exit_code == 1
    assert "--mark staging" in refused.output
    assert names(ask) is None
    assert run("seed", "--mark", "staging").exit_code == 0
    assert run("seed").exit_code == 0


def test_what_cannot_be_one_transaction_or_has_no_number_is_refused(
    goods: None, seed_file: Any, run: Run, folder: Path
) -> None:
    seed_file("1_a.sql", "INSERT INTO goods VALUES (1, 'a');\nCREATE INDEX CONCURRENTLY i ON goods (name);")
    assert "1_a.sql:2:1: CREATE INDEX CONCURRENTLY cannot stand in a seed" in run("seed").output
    seed_file(
        "1_a.sql", "BEGIN; INSERT INTO goods VALUES (1, 'a'); COMMIT; INSERT INTO goods VALUES (2, 'b');"
    )
    assert "COMMIT cannot stand in a seed" in run("seed").output
    seed_file("1_a.sql", "BEGIN; INSERT INTO goods VALUES (1, 'a'); COMMIT;")
    assert run("seed").exit_code == 0
    seed_file("late.sql", "SELECT 1;")
    assert "late.sql" in run("seed").output
    assert seeds.read([Folder("other", folder.parent / "nowhere" / "migrations")]) == []
