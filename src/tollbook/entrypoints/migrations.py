"""The engine pointed at Tollbook's own books: which folders, which database, and how `up` uses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tollbook
from tollbook import migrate
from tollbook.core.commands import open_database, read_settings, refuse_memory
from tollbook.migrate.cli import group as make_group
from tollbook.migrate.errors import VerificationFailed
from tollbook.migrate.objects import show_counts

if TYPE_CHECKING:
    from tollbook.entrypoints.serving import Teller

SOURCE = Path(tollbook.__file__).parent
BOOKS = ("payments", "settlement")
TOLD = (
    "backed up",
    "interrupted",
    "retrying",
    "waiting",
)  # of the engine's events, those people want to know


def find_folders(books: Sequence[str] = BOOKS) -> list[migrate.Folder]:
    """Return the migrations of the core, of the SDK's stores and of the books, as they lie in the package."""
    return [
        migrate.Folder("core", SOURCE / "core" / "migrations"),
        migrate.Folder("stores", SOURCE / "core" / "stores" / "migrations"),
        *(migrate.Folder(book, SOURCE / "books" / book / "migrations") for book in books),
    ]


def bring_up_to_date(url: str, books: Sequence[str], backup_dir: Path, teller: "Teller") -> None:
    """Apply what is pending, after a backup, verify it, and tell the counts. Raises MigrateError."""

    def tell(event: migrate.Event) -> None:
        if event.kind == "applied":
            step: migrate.Step = event.data["step"]
            counts = show_counts(step.counts)
            text = f"Migrated     {step.migration:<22} {counts}"
            teller.say("migrated", text, migration=step.migration, counts=counts)
        elif event.kind in TOLD:
            teller.say(event.kind.replace(" ", "-"), f"             {event.text}")

    folders = find_folders(books)
    migrate.apply(url, folders, backup_dir=backup_dir, listen=tell)
    wrong = migrate.verify(url, folders).wrong
    if wrong:
        raise VerificationFailed(
            f"The books are not as their migrations made them: {'; '.join(wrong)}. Nothing was started. "
            "Make them again, or restore a backup: tollbook migrate verify, tollbook migrate restore."
        )
    teller.say("verified", f"Books        {', '.join(books)}: migrated and verified")


def compare(url: str) -> tuple[Sequence[str], Sequence[str]]:
    """Return which migrations are pending, and in which ways the database differs from what was applied."""
    found = migrate.verify(url, find_folders())
    return found.pending, [*found.drift, *found.wrong]


def _open_default() -> str:
    """Return the URL of the configured database, which is kept open until the command ends."""
    settings = read_settings(None, None)
    refuse_memory(settings)
    return click.get_current_context().find_root().with_resource(open_database(settings))


group = make_group(find_folders, _open_default)
