"""The command expand: which change, and the files that were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tollbook.migrate.errors import WrongUsage

if TYPE_CHECKING:
    from tollbook.migrate.call import Call

KINDS = ("rename-column", "change-type", "add-not-null", "contract")


@click.argument("kind", type=click.Choice(KINDS))
@click.argument("table")
@click.argument("column")
@click.argument("new")
@click.option("--using", metavar="SQL", help="change-type: the new value, out of the column's own name.")
def expand(call: Call, *, kind: str, table: str, column: str, new: str, using: str | None) -> None:
    """Write the migrations of a change that old and new programs both live through; nothing is run.

    NEW is the new name, the new type, the value in place of NULL, or, to contract, the column that stays.
    """
    from tollbook.migrate import expand as expanding

    folders = call.folders
    if len(folders) != 1:
        raise WrongUsage("Say in which folder: tollbook migrate expand … --dir PATH")
    if using and kind != "change-type":
        raise WrongUsage("--using goes with change-type.")
    folder = folders[0]
    if kind == "change-type":
        made = expanding.change_type(call.url, folder, table, column, new, using=using)
    elif kind == "rename-column":
        made = expanding.rename_column(call.url, folder, table, column, new)
    elif kind == "add-not-null":
        made = expanding.add_not_null(call.url, folder, table, column, new)
    else:
        made = expanding.contract(call.url, folder, table, column, new)
    call.answer({"files": [str(path) for path in made]}, lambda made: click.echo("\n".join(made["files"])))
