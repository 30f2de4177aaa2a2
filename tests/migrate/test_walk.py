"""A random walk of the engine's verbs: files, history and catalog never disagree about what is in force."""

import itertools
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tollbook.embedded import Server
from tollbook.migrate import Folder, MigrateError, apply, plan, revert, status, verify

_numbers = itertools.count(1)
EXAMPLES_MAX = 12
STEPS_MAX = 14


class Walk(RuleBasedStateMachine):
    """Files come, some broken; they are tried, applied and taken back, in any order."""

    server: Server

    @initialize()
    def begin(self) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.path = Path(self.scratch.name)
        self.folders = [Folder("walk", self.path)]
        self.written: list[int] = []
        self.applied: list[int] = []
        self.broken: int | None = None
        name = f"walk_{next(_numbers)}"
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        self.url = self.server.url(name)

    def write(self, number: int, after: str = "") -> None:
        up = f"CREATE TABLE t{number} (i int);\nCREATE INDEX ON t{number} (i);\n{after}"
        (self.path / f"{number:04}_t.up.sql").write_text(up)
        (self.path / f"{number:04}_t.down.sql").write_text(f"DROP TABLE t{number};")

    @rule(gap=st.integers(1, 3))
    def write_the_next(self, gap: int) -> None:
        number = max(self.written, default=0) + gap
        self.write(number)
        self.written.append(number)

    @precondition(lambda self: self.broken is None)
    @rule(how=st.sampled_from(["SELECT 1/0;", "CREATE TABLE;", "DO $$ BEGIN RAISE 'no'; END $$;"]))
    def write_a_broken_one(self, how: str) -> None:
        self.broken = max(self.written, default=0) + 1
        self.write(self.broken, how)
        self.written.append(self.broken)

    @precondition(lambda self: self.broken is not None)
    @rule()
    def mend_the_broken_one(self) -> None:
        assert self.broken is not None
        self.write(self.broken)
        self.broken = None

    @rule()
    def plan_all(self) -> None:
        with suppress(MigrateError):
            found = plan(self.url, self.folders, depth="live")
            assert len(found.pending) == len(self.written) - len(self.applied)
            assert self.broken is None

    @rule()
    def apply_all(self) -> None:
        pending = [number for number in self.written if number not in self.applied]
        if self.broken is None:
            apply(self.url, self.folders, backup=False)
            self.applied += pending
            return
        syntax = "CREATE TABLE;" in (self.path / f"{self.broken:04}_t.up.sql").read_text()
        with pytest.raises(MigrateError):
            apply(self.url, self.folders, backup=False)
        if not syntax:  # found before anything runs; other faults are found when their turn comes
            self.applied += pending[: pending.index(self.broken)]

    @precondition(lambda self: self.applied)
    @rule(steps=st.integers(1, 3))
    def take_back(self, steps: int) -> None:
        result = revert(self.url, self.folders, steps=steps, backup=False)
        assert len(result.steps) == min(steps, len(self.applied))
        del self.applied[-steps:]

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "url"):
            return
        with psycopg.connect(self.url) as connection:
            rows = connection.execute(
                "SELECT substr(relname, 2)::int FROM pg_class WHERE relname ~ '^t[0-9]+$'"
            )
            assert sorted(row[0] for row in rows) == sorted(self.applied)
        states = {line.migration: line.state for line in status(self.url, self.folders).lines}
        assert states == {
            f"walk/{number:04}_t": "applied" if number in self.applied else "pending"
            for number in self.written
        }
        found = verify(self.url, self.folders, quick=True)  # the whole starts a server each time
        assert not found.wrong
        assert not found.drift

    def teardown(self) -> None:
        if hasattr(self, "scratch"):
            self.scratch.cleanup()


def test_whatever_is_done_in_whatever_order_files_history_and_catalog_agree(migrate_server: Server) -> None:
    Walk.server = migrate_server
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=EXAMPLES_MAX,
            stateful_step_count=STEPS_MAX,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
