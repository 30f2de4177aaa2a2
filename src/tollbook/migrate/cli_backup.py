"""The commands backup, restore, backups and backup-key: options, and how their answers are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tollbook.migrate.age import Key
    from tollbook.migrate.backup import Backup
    from tollbook.migrate.call import Call
    from tollbook.migrate.restore import Restored
    from tollbook.migrate.retention import Listed
    from tollbook.migrate.trial import Tried

Command = TypeVar("Command", bound=Callable[..., Any])
PLACE = "FOLDER|s3://BUCKET/PREFIX"
JOBS_MAX = 64

place_option = click.option("--backup-dir", metavar=PLACE, help="Where backups lie (TOLLBOOK_BACKUP_DIR).")
jobs_option = click.option("--jobs", type=click.IntRange(1, JOBS_MAX), help="Work on so many tables at once.")


def key_options(command: Command) -> Command:
    """Add the options that say where the secret is."""
    file = click.Path(path_type=Path, dir_okay=False)
    command = click.option("--key-file", type=file, help="An age key, made by backup-key.")(command)
    command = click.option("--passphrase-file", type=file, help="A file with the passphrase.")(command)
    return click.option("--passphrase", "ask", is_flag=True, help="Ask for a passphrase.")(command)


def _find_key(
    call: Call, *, ask: bool, passphrase_file: Path | None, key_file: Path | None, new: bool
) -> Key | None:
    from tollbook.migrate import keys

    if not ask:
        return keys.find(passphrase_file, key_file)
    call.require_terminal()
    return keys.make_passphrase(
        click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
    )


@place_option
@jobs_option
@click.option("--keep", type=click.IntRange(min=1), help="Keep so many of this database, remove older ones.")
@key_options
def backup(
    call: Call,
    *,
    backup_dir: str | None,
    jobs: int | None,
    keep: int | None,
    ask: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> None:
    """Back the whole database up into one file, counted and proven readable.

    Encrypted where --passphrase, --passphrase-file, --key-file or the environment
    (TOLLBOOK_BACKUP_PASSPHRASE, _PASSPHRASE_FILE, _KEY_FILE) say with what.
    """
    from tollbook.migrate import backup as backups

    key = _find_key(call, ask=ask, passphrase_file=passphrase_file, key_file=key_file, new=True)
    made = backups.backup(call.url, backup_dir, jobs=jobs or 1, key=key, keep=keep)
    call.answer(made, _show_backup)


def _show_backup(made: Backup) -> None:
    held = made.manifest.contents
    click.echo(f"Backup: {made.location} ({made.size_bytes:,} bytes, {made.seconds:.1f} s)")
    click.echo(f"  {held.objects.get('table', 0)} tables, {held.rows:,} rows, counted in the same snapshot")
    how = "" if made.manifest.encryption is None else f", encrypted by {made.manifest.encryption}"
    click.echo(f"  a restore takes about {_say_time(made.manifest.restore_seconds)}{how}")
    for location in made.removed:
        click.echo(f"  removed {location}")


@click.argument("file")
@click.option("--into", metavar="NAME_OR_URL", help="Restore into another database, made if it is not there.")
@click.option("--verify", "trying", is_flag=True, help="Only try: into a database made for it, then dropped.")
@click.option("--auto", is_flag=True, help="Ask no questions.")
@jobs_option
@key_options
def restore(
    call: Call,
    *,
    file: str,
    into: str | None,
    trying: bool,
    auto: bool,
    jobs: int | None,
    ask: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> None:
    """Put a backup back, loaded and compared beside the old database before it takes its place.

    FILE is a path or s3://BUCKET/PREFIX/NAME, as `backups` lists them. With --verify nothing is put in place:
    exit code 4 where the backup has not all that its manifest says.
    """
    key = _find_key(call, ask=ask, passphrase_file=passphrase_file, key_file=key_file, new=False)
    if trying:
        from tollbook.migrate import trial

        # Without an address it needs none: a throw-away server will do.
        url = call.given_url or os.environ.get("DATABASE_URL")
        call.answer(trial.try_out(url, file, jobs=jobs, key=key), _show_tried)
        return
    from tollbook.migrate import restore as restoration
    from tollbook.migrate.session import name_target, read_url

    url = call.url
    aim = "another database" if into else name_target(read_url(url))
    call.confirm(f"Put {file} in the place of what is in {aim}?", auto=auto)
    call.answer(restoration.restore(url, file, into=into, jobs=jobs, key=key), _show_restored)


def _show_tried(done: Tried) -> None:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(done.objects.items()))
    click.echo(f"Restored {done.file} on {done.where} in {_say_time(done.seconds)}, compared and dropped:")
    click.echo(f"  {done.tables} tables with {done.rows:,} rows, {done.migrations} migrations; {kinds}")
    _show_grants(done)
    click.secho("✓ all that its manifest says is there", fg="green")


def _show_restored(done: Restored) -> None:
    rows = "rows not known" if done.rows is None else f"{done.rows:,} rows, counted"
    click.echo(f"Restored {done.database}: {done.tables} tables, {rows} ({_say_time(done.seconds)}).")
    _show_grants(done)
    if done.kept:
        click.echo(
            f"What was there before is kept as the database {done.kept}; drop it when you no longer need it."
        )


def _show_grants(done: Restored | Tried) -> None:
    if done.missing_roles:
        names = ", ".join(done.missing_roles)
        click.secho(f"  not granted, as these roles are not here: {names}", fg="yellow")
    for lost in done.lost_grants:
        click.secho(f"  not granted: {lost}", fg="yellow")


@place_option
def backups(call: Call, backup_dir: str | None) -> None:
    """List the backups in a place, newest first, with what is in each. Exits with 3 if one is not good."""
    from tollbook.migrate import retention
    from tollbook.migrate.errors import BackupFailed

    try:
        found = retention.backups(backup_dir)
    except OSError as error:
        raise BackupFailed(f"The place cannot be read: {error}. Check --backup-dir.") from None
    call.answer(found, _show_backups)
    sys.exit(3 if any(one.wrong for one in found) else 0)


def _show_backups(found: list[Listed]) -> None:
    for one in found:
        known, held = one.manifest, one.manifest.contents
        click.secho(one.location, bold=True)
        click.echo(
            f"  {known.made_at:%Y-%m-%d %H:%M} UTC  {known.database} on {known.server}  "
            f"{known.size_bytes:,} bytes  {held.table_count} tables, {held.rows:,} rows, "
            f"{len(held.history)} migrations"
            + (f"  encrypted by {known.encryption}" if known.encryption else "")
        )
        if known.trial:
            took = _say_time(known.trial.seconds)
            click.echo(f"  tried {known.trial.at:%Y-%m-%d %H:%M} UTC on {known.trial.where}: {took}")
        if one.wrong:
            click.secho(f"  ✗ not good: {one.wrong}", fg="red")
    if not found:
        click.echo("No backups.")


@click.argument("file", type=click.Path(path_type=Path))
def backup_key(call: Call, file: Path) -> None:
    """Make a key for backups: the secret into a new FILE, the public key to be seen."""
    from tollbook.migrate import keys

    made = keys.create_key_file(file)
    answer = {"file": str(file), "public_key": str(made.recipient)}
    call.answer(answer, lambda answer: click.echo(f"Secret key: {file}\nPublic key: {answer['public_key']}"))


def _say_time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
