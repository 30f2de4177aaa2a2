"""The commands that deliver: migrations as one SQL file, seeds, and what is drawn of a database."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tollbook.migrate.errors import MigrateError, WrongUsage

if TYPE_CHECKING:
    from tollbook.migrate.bundle import Bundle
    from tollbook.migrate.call import Call
    from tollbook.migrate.seeds import Seeding

out_option = click.option("--out", type=click.Path(dir_okay=False), help="The file to write.")


def save(out: str, text: str) -> Path:
    """Write a file. Raises MigrateError."""
    path = Path(out)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MigrateError(f"{path} cannot be written ({error.strerror}).") from None
    return path


@click.option(
    "--from-version", metavar="VERSION", help="What the database has; without, what it lacks is asked."
)
@click.option(
    "--to", metavar="VERSION", help="Stop after this version (FOLDER/VERSION with several folders)."
)
@out_option
@click.option("--undo", is_flag=True, help="Write the file that takes the same migrations back.")
@click.option("--psql", is_flag=True, help="Keep the rows of COPY as they are, which psql alone can read.")
def bundle(
    call: "Call", *, from_version: str | None, to: str | None, out: str | None, undo: bool, psql: bool
) -> None:
    """Write what is pending as one SQL file, for psql or an import: guarded, proven and recorded.

    Without a database and without --from-version it is all of the migrations.
    """
    from tollbook.migrate import bundle as bundles

    made = bundles.bundle(
        call.folders,
        url=call.known_url,
        from_version=call.target(from_version),
        to=call.target(to),
        undo=undo,
        psql=psql,
    )
    answer: dict[str, Any] = {"migrations": made.migrations, "after": made.after, "undo": made.undo}
    if not made.migrations:
        call.answer(answer, lambda _: click.echo("Nothing is pending; there is no file to write.", err=True))
        return
    if out:
        answer["file"] = str(save(out, made.text))
    else:
        answer["sql"] = made.text
    call.answer(answer, lambda _: _show_bundle(made, out))


def _show_bundle(made: "Bundle", out: str | None) -> None:
    if out is None:
        click.echo(made.text, nl=False)
        return
    does = "takes back" if made.undo else "applies"
    before = f" It needs {made.after}." if made.after else ""
    click.echo(f"{out} {does} {len(made.migrations)}.{before} Run it by: psql -v ON_ERROR_STOP=1 -f {out}")


@click.option("--env", help="The environment (else what the database is marked as, or dev).")
@click.option("--force", is_flag=True, help="Seed production too, and what is not marked.")
@click.option("--mark", metavar="ENV", help="Write into the database which environment it is; seed nothing.")
def seed(call: "Call", *, env: str | None, force: bool, mark: str | None) -> None:
    """Run the seeds beside the folder that are new or changed: NN_name.sql and NN_name.ENV.sql.

    Refused where the database is marked as production, and where it is elsewhere and not marked.
    """
    from tollbook.migrate import seeds

    if mark is not None:
        if env or force:
            raise WrongUsage("Give --mark alone.")
        database = seeds.mark(call.url, mark)
        answer = {"database": database, "environment": mark}
        call.answer(answer, lambda _: click.echo(f"{database} is marked as {mark}."))
        return
    done = seeds.seed(call.url, call.folders, env=env, force=force, listen=call.listen)
    call.answer(done, _show_seeding)
    if not (done.ran or done.unchanged or call.as_json):
        places = dict.fromkeys(str(seeds.find_place(one)) for one in call.folders)
        click.echo(f"There are no seeds for {done.environment} in {', '.join(places)}.")


def _show_seeding(done: "Seeding") -> None:
    for one in done.ran:
        click.echo(f"✓ seeded {one.seed}  {one.duration_seconds * 1000:.0f} ms")
    click.echo(
        f"{len(done.ran)} seeded as {done.environment}, {len(done.unchanged)} unchanged on {done.database}."
    )


@click.option("--out", default="schema.html", show_default=True, help="The file to write: .html or .svg.")
def graph(call: "Call", *, out: str) -> None:
    """Draw the tables of the database, their columns and keys, and what refers to what."""
    from tollbook.migrate import diagram

    draw = {".html": diagram.draw_html, ".svg": diagram.draw_svg}.get(Path(out).suffix.lower())
    if draw is None:
        raise WrongUsage(f"--out {out}: write a name that ends with .html or .svg.")
    found = diagram.read(call.url)
    save(out, draw(found))
    answer = {"file": out, "tables": len(found.tables), "references": len(found.references)}
    said = f"{out}: {answer['tables']} tables, {answer['references']} references of {found.database}."
    call.answer(answer, lambda _: click.echo(said))


@click.option("--out", default="timeline.html", show_default=True, help="The file to write.")
def timeline(call: "Call", *, out: str) -> None:
    """Draw what ran on the database: when, for how long, by whom, and how it ended."""
    from tollbook.migrate import timeline as timelines

    found = timelines.read(call.url)
    save(out, timelines.draw(found))
    answer = {"file": out, "runs": found.runs}
    call.answer(answer, lambda _: click.echo(f"{out}: {len(found.runs)} runs on {found.database}."))
