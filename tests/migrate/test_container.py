"""The engine as a one-shot job: logs that a machine reads, exit codes, and many that start at once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Ask = Callable[..., Any]


def read_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_job_tells_each_event_as_a_line_of_json(write: Any, run: Run) -> None:
    write("0001_goods", up="CREATE TABLE goods (id int);")
    result = run("apply", "--auto", "--skip-backup", "--log", "json", "--json")
    lines = read_lines(result.stderr)
    assert [line["kind"] for line in lines if line["kind"] in ("begin", "applying", "applied", "end")] == [
        "begin",
        "applying",
        "applied",
        "end",
    ]
    assert all({"time", "severity", "message", "kind", "data"} == set(line) for line in lines)
    assert lines[-1]["data"]["exit_code"] == result.exit_code == 0
    assert len(json.loads(result.stdout)["steps"]) == 1


def test_a_job_that_fails_says_why_and_with_which_code(write: Any, run: Run) -> None:
    write("0001_bad", up="CREATE TABLE goods (id int);\nSELECT 1/0;")
    result = run("apply", "--auto", "--skip-backup", "--log", "json")
    error, end = read_lines(result.stderr)[-2:]
    assert error["severity"] == "ERROR"
    assert "0001_bad.up.sql:2" in error["message"]
    assert end["data"]["exit_code"] == result.exit_code == 1
    assert read_lines(run("status", "--log", "json").stderr)[-1]["data"]["exit_code"] == 3


def test_a_job_that_is_stopped_rolls_back_and_says_so(write: Any, url: str, folder: Any, ask: Ask) -> None:
    write("0001_slow", up="CREATE TABLE slow (id int); SELECT pg_sleep(60);")
    options = [
        "apply",
        "--dir",
        str(folder),
        "--database-url",
        url,
        "--auto",
        "--skip-backup",
        "--log",
        "json",
    ]
    command = [sys.executable, "-m", "tollbook.migrate", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        lines = [job.stderr.readline()]
        while json.loads(lines[-1])["kind"] != "applying":
            lines.append(job.stderr.readline())
        while not ask("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            time.sleep(0.05)
        job.terminate()
        said = read_lines(job.stderr.read())
    assert job.returncode == 130
    assert said[-1]["data"]["exit_code"] == 130
    assert ask("SELECT to_regclass('slow') IS NULL")


PROGRAM = """
import sys
from pathlib import Path
from tollbook.migrate import Folder, apply
print(len(apply(sys.argv[1], [Folder("shop", Path(sys.argv[2]))], backup=False).steps))
"""
PROCESSES = 10


def test_ten_programs_that_start_at_once_apply_once(write: Any, url: str, folder: Any, ask: Ask) -> None:
    for number in range(1, 4):
        write(f"000{number}_t", up=f"CREATE TABLE t{number} (id int); SELECT pg_sleep(0.1);")
    command = [sys.executable, "-c", PROGRAM, url, str(folder)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(PROCESSES)
    ]
    said = sorted(process.communicate(timeout=240)[0].strip() for process in started)
    assert said == ["0"] * (PROCESSES - 1) + ["3"]
    assert all(process.returncode == 0 for process in started)
    assert ask("SELECT count(*) FROM tollbook_migrate.history") == 3
