"""The engine pointed at Tollbook's own books: which folders, which database, and how `up` uses it."""

from collections.abc import Sequence
from pathlib import Path

import tollbook
from tollbook import migrate
from tollbook.entrypoints.serving import Teller
from tollbook.migrate.objects import show_counts

SOURCE = Path(tollbook.__file__).parent
BOOKS = ("payments",)
TOLD = (
    "backed up",
    "interrupted",
    "retrying",
    "waiting",
)  # of the engine's events, those people want to know


def find_folders(books: Sequence[str] = BOOKS) -> list[migrate.Folder]:
    """Return the migrations of the core and then of the books, as they lie in the package."""
    return [
        migrate.Folder("core", SOURCE / "core" / "migrations"),
        *(migrate.Folder(book, SOURCE / "books" / book / "migrations") for book in books),
    ]


def bring_up_to_date(url: str, books: Sequence[str], teller: Teller) -> None:
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
    migrate.apply(url, folders, listen=tell)
    migrate.verify(url, folders)
    teller.say("verified", f"Books        {', '.join(books)}: migrated and verified")


def compare(url: str) -> tuple[list[str], list[str]]:
    """Return which migrations are pending, and in which ways the catalog differs from what was applied."""
    raise NotImplementedError
