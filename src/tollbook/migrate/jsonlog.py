"""Events as lines of JSON on standard error, for what collects the logs of containers (`--log json`).

Each line has time, severity and message, which log collectors know by these names, and kind and data.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from tollbook.migrate import report
from tollbook.migrate.errors import MigrateError
from tollbook.migrate.events import Event

SEVERITIES = {"interrupted": "WARNING", "retrying": "WARNING", "note": "NOTICE", "error": "ERROR"}


def write(event: Event) -> None:
    """Write an event down. Its data are figures and names, never a secret."""
    line = {
        "time": event.at.isoformat(),
        "severity": SEVERITIES.get(event.kind, "INFO"),
        "message": event.text,
        "kind": event.kind,
        "data": dict(event.data),
    }
    click.echo(report.write_line(line), err=True)


def write_error(error: MigrateError) -> None:
    """Write down why a command stops."""
    write(Event("error", str(error), report.describe_error(error)))


@contextmanager
def told(command: str, *, on: bool) -> Generator[None]:
    """Write that a command begins, and with which exit code it ends."""
    if not on:
        yield
        return
    write(Event("begin", f"tollbook migrate {command}", {"command": command}))
    try:
        yield
    finally:
        code = _read_code(sys.exc_info()[1])
        event = Event(
            "end", f"tollbook migrate {command} ends with {code}", {"command": command, "exit_code": code}
        )
        write(event)


def _read_code(error: Any) -> int:
    if error is None:
        return 0
    return int(error.code or 0) if isinstance(error, SystemExit) else 1
