"""Killed before and after every message of a run, at any kind of file: the next ends as if it never was."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fixtures.tenfold import TEN, empty, lay_out, look
from fixtures.walks import STEP
from tollbook.migrate import Folder, apply, exchange, revert, status

POINTS_MAX = 600
POINTS_MIN = 60  # fewer would mean that the walk misses most of a run


class Stop:
    """Counts what is sent and what is waited for; kills the process at one of these points."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def watch(stop: Callable[[], None]) -> None:
    """Call `stop` before a message is sent, and when it is sent and not answered."""
    send, wait = exchange.send, psycopg.Connection.wait

    def sent(*arguments: Any) -> Any:
        stop()
        return send(*arguments)

    def waited(*arguments: Any, **more: Any) -> Any:
        stop()
        return wait(*arguments, **more)

    from tollbook.migrate import execution

    exchange.send = execution.send = sent  # pyright: ignore[reportAttributeAccessIssue]
    psycopg.Connection.wait = waited  # pyright: ignore[reportAttributeAccessIssue]


def die_at(at: int, work: Callable[[], object]) -> bool:
    """Do the work in a process of its own that is killed at a point; False where it ended before."""
    pid = os.fork()
    if pid == 0:
        watch(Stop(at))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@pytest.fixture
def folders(tmp_path: Path) -> list[Folder]:
    return lay_out(tmp_path, TEN)


def walk(first: Callable[[], str], work: Callable[[str], object]) -> int:
    """Kill the work at some points, from the same beginning, and finish it; return how many there are."""
    wanted = None
    for at in [0, *range(random.randint(1, STEP), POINTS_MAX + 1, STEP)]:
        url = first()
        killed = bool(at) and die_at(at, lambda url=url: work(url))
        if not at or killed:
            work(url)
        found = look(url)
        wanted = wanted or found
        assert found == wanted, f"killed at point {at}"
        if at and not killed:
            return at - 1
    raise AssertionError(f"more than {POINTS_MAX} points")


def test_a_run_of_all_kinds_killed_anywhere_is_finished_by_the_next_as_if_it_never_was(
    url: str, folders: list[Folder]
) -> None:
    points = walk(lambda: empty(url), lambda url: apply(url, folders, backup=False))
    assert points > POINTS_MIN


def test_a_way_back_through_all_kinds_killed_anywhere_is_finished_by_the_next(
    url: str, folders: list[Folder]
) -> None:
    def first() -> str:
        apply(empty(url), folders, backup=False)
        return url

    # The first makes the table of effects, so it stays.
    points = walk(first, lambda url: revert_all(url, folders))
    assert points > POINTS_MIN


def revert_all(url: str, folders: list[Folder]) -> None:
    """Take back what is in force of the plain folder, down to its first migration."""
    left = len(status(url, folders).lines) - 1 - len(status(url, folders).pending)
    if left:
        revert(url, folders, steps=left, backup=False)
