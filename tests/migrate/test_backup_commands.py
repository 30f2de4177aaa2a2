"""The commands backup, restore, backups and backup-key, as a user gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fixtures.backups import SHOP_ROWS, ask, execute
from tollbook.migrate.backup import backup
from tollbook.migrate.cli import group
from tollbook.migrate.places import Folder
from tollbook.migrate.scratch import SWEEP_AGE_SECONDS, temporary


def run(books: str, *arguments: object, give: str | None = None) -> Result:
    command = [str(arguments[0]), "--database-url", books, *map(str, arguments[1:])]
    return CliRunner().invoke(group(list, lambda: ""), command, input=give, catch_exceptions=False)


def test_a_backup_is_made_listed_tried_and_put_back(books: str, tmp_path: Path) -> None:
    made = run(books, "backup", "--backup-dir", tmp_path, "--jobs", 2, "--keep", 3)
    assert made.exit_code == 0
    assert f"9 tables, {SHOP_ROWS:,} rows, counted" in made.output
    assert "a restore takes about" in made.output
    (listed,) = json.loads(run(books, "backups", "--backup-dir", tmp_path, "--json").output)
    tried = run(books, "restore", "--verify", listed["location"])
    assert (tried.exit_code, "✓ all that its manifest says is there" in tried.output) == (0, True)
    assert "tried" in run(books, "backups", "--backup-dir", tmp_path).output
    execute(books, "DELETE FROM shop.sales")
    done = run(books, "restore", listed["location"], "--auto", "--json")
    assert json.loads(done.output)["rows"] == SHOP_ROWS
    assert ask(books, "SELECT count(*) FROM shop.sales") == 2000


def test_a_key_is_made_and_its_public_half_is_enough_to_back_up(books: str, tmp_path: Path) -> None:
    told = json.loads(run(books, "backup-key", tmp_path / "key", "--json").output)
    assert "AGE-SECRET-KEY" not in str(told)
    (tmp_path / "public").write_text(told["public_key"])
    made = run(books, "backup", "--key-file", tmp_path / "public", "--backup-dir", tmp_path / "b", "--json")
    location = json.loads(made.output)["location"]
    refused = run(books, "restore", "--verify", location, "--key-file", tmp_path / "public")
    assert (refused.exit_code, "is encrypted" in refused.output) == (1, True)
    assert run(books, "restore", "--verify", location, "--key-file", tmp_path / "key").exit_code == 0


def test_what_is_not_good_is_told_by_its_exit_code(books: str, tmp_path: Path) -> None:
    assert run(books, "backups", "--backup-dir", tmp_path).exit_code == 0
    made = backup(books, tmp_path)
    text = (tmp_path / made.manifest.name).read_text()
    (tmp_path / made.manifest.name).write_text(text.replace('"view": 1', '"view": 7'))
    assert run(books, "restore", "--verify", made.path).exit_code == 4
    made.path.write_bytes(b"")
    listed = run(books, "backups", "--backup-dir", tmp_path)
    assert (listed.exit_code, "not good" in listed.output) == (3, True)


def test_nobody_is_asked_for_a_passphrase_without_a_terminal(books: str, tmp_path: Path) -> None:
    told = run(books, "backup", "--passphrase", "--backup-dir", tmp_path, give="four good long words\n")
    assert told.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_backup_before_apply_is_encrypted_as_the_environment_says(
    books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0001_a.up.sql").write_text("CREATE TABLE a (id int);")
    monkeypatch.setenv("TOLLBOOK_BACKUP_PASSPHRASE", "four good long words")
    options = ("--auto", "--dir", tmp_path / "more", "--backup-dir", tmp_path / "b")
    assert run(books, "apply", *options).exit_code == 0
    (made,) = json.loads(run(books, "backups", "--backup-dir", tmp_path / "b", "--json").output)
    assert made["manifest"]["encryption"] == "passphrase"
    done = run(books, "backup", "--backup-dir", tmp_path / "b", "--json")
    assert json.loads(done.output)["manifest"]["contents"]["history"] == ["more/1"]
    assert "good long" not in done.output


def test_what_a_kill_left_among_the_temporary_files_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = """
import os, signal, sys
from tollbook.migrate.scratch import temporary
with temporary("tollbook-restore-") as folder:
    (folder / "dump").write_text("rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    (left,) = tmp_path.iterdir()
    with temporary("tollbook-restore-") as young:
        assert left.exists()  # it may be about to be locked
        assert SWEEP_AGE_SECONDS > 1
        os.utime(left, (0, 0))
        os.utime(young, (0, 0))
        with temporary("tollbook-restore-"):
            assert (left.exists(), young.exists()) == (False, True)


def test_another_programs_partial_file_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / "film.partial").touch()
    os.utime(tmp_path / "film.partial", (0, 0))
    Folder(tmp_path).sweep()
    assert (tmp_path / "film.partial").exists()
