"""A call of a command: what its options come to, how it answers, and how it ends."""

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import click

from tollbook.migrate import files, jsonlog, report
from tollbook.migrate.errors import MigrateError, WrongUsage
from tollbook.migrate.events import Event, ignore
from tollbook.migrate.files import Folder
from tollbook.migrate.runlog import RunLog

EXIT_INTERRUPTED = 130

DefaultFolders = Callable[[], list[Folder]]
DefaultUrl = Callable[[], str]


class Call:
    """What the options of a call come to: which folders, which database, how to answer."""

    def __init__(
        self,
        dirs: tuple[str, ...],
        format_: str,
        url: str | None,
        defaults: tuple[DefaultFolders, DefaultUrl],
        *,
        as_json: bool,
        verbose: bool,
        log_json: bool = False,
    ) -> None:
        self.dirs = dirs
        self.format = format_
        self.given_url = url
        self.default_folders, self.default_url = defaults
        self.as_json = as_json
        self.verbose = verbose
        self.log_json = log_json

    @property
    def folders(self) -> list[Folder]:
        """The folders of --dir, or the defaults."""
        return [files.parse_folder(text, self.format) for text in self.dirs] or self.default_folders()

    @property
    def url(self) -> str:
        """The address of --database-url or DATABASE_URL, or the default, asked for only now."""
        return self.known_url or self.default_url()

    @property
    def known_url(self) -> str | None:
        """The address of --database-url or DATABASE_URL, if one of them says it."""
        return self.given_url or os.environ.get("DATABASE_URL")

    def target(self, text: str | None) -> tuple[str, str] | None:
        """Read --to: a version or label, or FOLDER/VERSION where there are several folders."""
        from tollbook.migrate import formats

        if text is None:
            return None
        folders = self.folders
        names = [folder.name for folder in folders]
        folder, slash, version = text.partition("/")
        if not slash and len(names) == 1:
            folder, version = names[0], text
        if folder not in names or not version:
            raise WrongUsage(
                f"--to {text}: write FOLDER/VERSION, with one of the folders {', '.join(names)}."
            )
        return folder, formats.find_version(folders, folder, version)

    def answer(self, value: Any, show: Callable[[Any], None]) -> None:
        """Print a result, as JSON or in words."""
        if self.as_json:
            click.echo(report.write_json(value))
        else:
            show(value)

    def listen(self, event: Event) -> None:
        """Print progress, unless the answer is to be one JSON object."""
        if self.log_json:
            jsonlog.write(event)
        elif not self.as_json:
            report.show_event(event, verbose=self.verbose)

    def confirm(self, question: str, *, auto: bool) -> None:
        """Ask before something is changed. Raises WrongUsage where nobody can answer."""
        if auto:
            return
        self.require_terminal()
        if not click.confirm(question, err=True):
            raise MigrateError("Not confirmed; nothing was changed.")

    def require_terminal(self) -> None:
        """Refuse to begin what will end in a question that nobody can answer. Raises WrongUsage."""
        if self.as_json or not sys.stdin.isatty():
            raise WrongUsage("Nobody can be asked here (no terminal, or --json). Give --auto to go ahead.")


@contextmanager
def reporting(call: Call) -> Generator[None]:
    """Turn the engine's errors into a message and an exit code."""
    # Ended politely (a container's stop), the run rolls back and cleans up as after Ctrl-C.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except MigrateError as error:
        if call.log_json:
            jsonlog.write_error(error)
        if call.as_json:
            click.echo(report.write_json(report.describe_error(error)))
        elif not call.log_json:
            click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        said = Event("interrupted", "Interrupted. What was not committed is rolled back.")
        if call.log_json:
            jsonlog.write(said)
        else:
            click.echo(said.text, err=True)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def logged(call: Call, command: str, *, quiet: bool = False) -> Generator[RunLog]:
    """Keep a log of a run, and say at its end where it is (quiet: in the log alone)."""
    log = RunLog(command, ignore if quiet else call.listen)
    try:
        with log:
            yield log
    finally:
        if not (call.as_json or quiet or call.log_json):
            click.echo(
                f"Log: {log.path}" if log.path else "No log: its folder cannot be written to.", err=True
            )
