"""The engine pointed at Tollbook's own books: which folders, which database, and how `up` uses it."""

from collections.abc import Sequence
from pathlib import Path

import tollbook
from tollbook import migrate
from tollbook.entrypoints.serving import Teller

SOURCE = Path(tollbook.__file__).parent
BOOKS = ("payments",)


def find_folders(books: Sequence[str] = BOOKS) -> list[migrate.Folder]:
    """Return the migrations of the core and then of the books, as they lie in the package."""
    return [
        migrate.Folder("core", SOURCE / "core" / "migrations"),
        *(migrate.Folder(book, SOURCE / "books" / book / "migrations") for book in books),
    ]
