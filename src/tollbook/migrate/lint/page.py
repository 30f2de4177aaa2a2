"""docs/hazards.md: every rule with an example and what the lint makes of it, from the rules themselves."""

import hashlib
from pathlib import Path

from tollbook.migrate.files import Migration, Script
from tollbook.migrate.lint.examples import GIVEN
from tollbook.migrate.lint.linting import lint_migrations
from tollbook.migrate.lint.rule import Finding, Rule
from tollbook.migrate.lint.rules import RULES

HEAD = """\
# Hazards: what `tollbook migrate lint` looks for

<!-- Written by `tollbook migrate lint --rules --markdown`; a test holds it to the rules. -->

{count} rules. An **error** loses something, fails on a table with rows, or locks it for as long as its rows
take; a **warning** breaks the running release or locks for a moment that can grow long; a **notice** will
cost somebody later. `docs/migrate-lint.md` says how to run it, and how to allow what is meant.

What a rule says of locks, rewrites and losses is not from memory: a test runs each example below on
PostgreSQL, with rows in the tables, and compares. The examples stand on these tables:

```sql
{given}```

| Rule | | What |
|---|---|---|
{table}
"""


def write_page() -> str:
    """Return the page."""
    ordered = sorted(RULES, key=lambda rule: rule.id)
    table = "\n".join(f"| [`{rule.id}`](#{rule.id}) | {rule.severity} | {rule.what} |" for rule in ordered)
    head = HEAD.format(count=len(RULES), given=GIVEN, table=table)
    return "\n".join([head, *(_write_chapter(rule) for rule in ordered)])


def _write_chapter(rule: Rule) -> str:
    found = find(rule)
    parts = [
        f"## {rule.id}\n\n*{rule.severity}{_claim(rule)}*\n\n{rule.what}",
        f"**Why.** {rule.why}",
        f"**Instead.** {rule.safe}",
        f"```sql\n{rule.example.sql}\n```",
        f"> {found[0].sentence}",
    ]
    if found[0].safe_sql:
        parts.append(f"```sql\n{found[0].safe_sql}\n```")
    return "\n\n".join(parts) + "\n"


def _claim(rule: Rule) -> str:
    claim = rule.example.claim
    if claim is None:
        return ""
    if claim.fails:
        return f"; fails with {claim.fails}"
    if not claim.lock:
        return ""
    how = ", table written anew" if claim.rewrite else ", every row read" if claim.scan else ""
    return f"; observed: {claim.lock} on {claim.on}{how}"


def find(rule: Rule) -> list[Finding]:
    """Return what a rule finds in its own example."""
    migrations = [
        _write("0001_before", f"{GIVEN}{rule.example.given}"),
        _write("0002_change", rule.example.sql),
    ]
    seen = lint_migrations(migrations, pending={"shop/0002_change"}, ask_squawk=False)
    return [one for one in seen.findings if one.rule == rule.id]


def _write(label: str, text: str) -> Migration:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Migration("shop", label[:4], label, Script(Path(f"shop/{label}.up.sql"), text, digest))
