"""Linting folders of migrations."""

from collections.abc import Collection, Sequence

from tollbook.migrate import formats
from tollbook.migrate.errors import WrongUsage
from tollbook.migrate.files import Folder, Migration
from tollbook.migrate.lint import squawk
from tollbook.migrate.lint.rule import Rule
from tollbook.migrate.lint.rules import RULES
from tollbook.migrate.lint.walk import Lint, Walk, sort


def lint(
    folders: Sequence[Folder],
    *,
    pending: Collection[str] | None = None,
    rules: Collection[str] = (),
    ask_squawk: bool = True,
) -> Lint:
    """Look for hazards in the migrations of the folders, without a database.

    pending: the ids (folder/label) of what is not applied yet: only this is looked at, and what it makes is
    new to all of it. Without it every file is looked at as if it were applied alone, upon those before it.
    rules: ids of the rules to ask, all without. ask_squawk: let squawk look as well, if it is installed.
    Raises WrongUsage for an unknown rule, and FolderRefused.
    """
    return lint_migrations(formats.read(folders), pending=pending, rules=rules, ask_squawk=ask_squawk)


def lint_pending(
    url: str, folders: Sequence[Folder], *, rules: Collection[str] = (), ask_squawk: bool = True
) -> Lint:
    """Look for hazards in what is pending on a database, whose own schema says what is there already.

    Raises MigrateError where the database cannot be asked.
    """
    from tollbook.migrate import inspection
    from tollbook.migrate.lint import live
    from tollbook.migrate.session import connected

    pending = set(inspection.status(url, folders).pending)
    with connected(url) as conn:
        there = live.read(conn)
    migrations = [there, *(one for one in formats.read(folders) if one.id in pending)]
    return lint_migrations(migrations, pending=pending, rules=rules, ask_squawk=ask_squawk)


def lint_migrations(
    migrations: Sequence[Migration],
    *,
    pending: Collection[str] | None = None,
    rules: Collection[str] = (),
    ask_squawk: bool = True,
) -> Lint:
    """Look for hazards in migrations that are read already; see `lint`."""
    known = frozenset(rule.id for rule in RULES)
    walk = Walk(choose(rules), pending, known, find_reversible(migrations))
    for migration in migrations:
        walk.visit(migration)
    version = squawk.find() if ask_squawk and not rules else None
    if version:
        squawk.merge(walk)
    walk.finish()
    return Lint(
        sort(walk.findings),
        len({file.script.path for file in walk.files}),
        sum(len(file.spans) for file in walk.files),
        walk.allowed,
        version,
    )


def find_reversible(migrations: Sequence[Migration]) -> frozenset[str]:
    """Return the folders with ways back: only there a down file can be missing."""
    return frozenset(one.folder for one in migrations if one.down or one.up.path.name.endswith(".up.sql"))


def choose(wanted: Collection[str]) -> list[Rule]:
    """Return the rules of these ids, all without any. Raises WrongUsage for an unknown one."""
    known = {rule.id for rule in RULES}
    if unknown := sorted({*wanted} - known):
        raise WrongUsage(f"There is no rule {unknown[0]}. `tollbook migrate lint --rules` lists them.")
    return [rule for rule in RULES if not wanted or rule.id in wanted]
