"""`python -m tollbook.migrate`: the engine alone, for any folder and any PostgreSQL."""

import gc
import os
from typing import NoReturn

from tollbook.migrate.errors import WrongUsage

# libpq's own variables, which say where the database is without an address.
LIBPQ_VARIABLES = ("PGHOST", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")
# Looking for garbage while modules load and files are parsed, where there is none, took an eighth of a run.
OBJECTS_BETWEEN_COLLECTIONS = 100_000


def _require_dir() -> NoReturn:
    raise WrongUsage("Say which folder of migrations: --dir PATH (or NAME=PATH, repeatable).")


def _ask_libpq() -> str:
    if not any(os.environ.get(name) for name in LIBPQ_VARIABLES):
        raise WrongUsage(
            "Say which database: --database-url or DATABASE_URL, as postgresql://USER@HOST/DATABASE."
        )
    return "postgresql://"


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    from tollbook.migrate.cli import group  # while it loads, nothing is looked for already

    try:
        group(_require_dir, _ask_libpq)(prog_name="tollbook migrate")
    finally:
        gc.freeze()  # nor on the way out, which took as long as a third of the loading


if __name__ == "__main__":
    main()
