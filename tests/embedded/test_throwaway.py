"""Servers that go when they are no longer needed, and the settings that follow the machine."""

import os
import tempfile
from pathlib import Path

import psycopg

from tollbook import embedded
from tollbook.embedded import server, tuning


def test_a_throwaway_leaves_no_folder() -> None:
    with embedded.throwaway() as started:
        folder = started.data_dir.parent
        assert folder.is_dir()
    assert not folder.exists()


def test_what_a_killed_throwaway_left_is_swept_and_living_ones_are_not() -> None:
    left = Path(tempfile.mkdtemp(prefix=server.THROWAWAY))
    (left / "data").mkdir()
    with embedded.throwaway() as running:
        for old in (left, running.data_dir.parent):  # only these: others run tests beside us
            os.utime(old, (0, 0))
        with embedded.throwaway():
            assert not left.exists()
            with psycopg.connect(running.url()) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_settings_follow_the_memory_within_bounds() -> None:
    small, large = tuning.render_settings(256 * 2**20), tuning.render_settings(2**40)
    assert "shared_buffers = 32MB\n" in small
    assert "shared_buffers = 1024MB\n" in large
    assert tuning.read_memory_bytes() > 64 * 2**20
