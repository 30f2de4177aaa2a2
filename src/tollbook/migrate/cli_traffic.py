"""The options that bound how far a run may stand in the way of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tollbook.migrate import headers

if TYPE_CHECKING:
    from tollbook.migrate.traffic import Traffic

LOCK_TIMEOUT_DEFAULT = "5s"
LAG_DEFAULT = "10s"
QUEUE_DEFAULT = 20

Command = TypeVar("Command", bound=Callable[..., Any])


class Seconds(click.ParamType[float]):
    """A length of time: 500ms, 5s, 2min; a bare number is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        seconds = headers.read_seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no length of time. Write 500ms, 5s or 2min.", param, ctx)
        return seconds


lock_option = click.option(
    "--lock-timeout",
    type=Seconds(),
    default=LOCK_TIMEOUT_DEFAULT,
    show_default=True,
    help="Longest wait for a lock on a table.",
)


def traffic_options(command: Command) -> Command:
    """Add the options of commands that work on tables in use."""
    command = click.option(
        "--lag-max",
        type=Seconds(),
        default=LAG_DEFAULT,
        show_default=True,
        help="Wait while a replica is further behind.",
    )(command)
    command = click.option(
        "--statement-timeout", type=Seconds(), help="Longest a statement may take (no bound without it)."
    )(command)
    return click.option(
        "--queue-max",
        type=click.IntRange(min=0),
        default=QUEUE_DEFAULT,
        show_default=True,
        help="Give way when more sessions wait behind; 0: never.",
    )(command)


def read_traffic(options: Mapping[str, Any]) -> Traffic:
    """Return what those options come to."""
    from tollbook.migrate.traffic import Traffic

    return Traffic(
        queue_max=options["queue_max"],
        statement_timeout_seconds=options["statement_timeout"],
        lag_seconds_max=options["lag_max"],
    )
