"""Findings as text for a terminal, Markdown for a pull request, and SARIF for code scanning."""

from collections import Counter
from pathlib import Path
from typing import Any

import click

from tollbook.migrate.lint.rule import SEVERITIES, Finding, Rule
from tollbook.migrate.lint.rules import RULES
from tollbook.migrate.lint.walk import Lint

COLOURS = {"error": "red", "warning": "yellow", "notice": "cyan"}
SARIF_LEVELS = {"error": "error", "warning": "warning", "notice": "note"}
FINDINGS_SHOWN_MAX = 200


def reaches(lint: Lint, gate: str) -> bool:
    """Whether anything as grave as the gate, or graver, was found; never is a gate that nothing reaches."""
    grave = SEVERITIES[: SEVERITIES.index(gate) + 1] if gate in SEVERITIES else ()
    return any(one.severity in grave for one in lint.findings)


def summarize(lint: Lint) -> str:
    """Return the counts as a sentence."""
    counts = Counter(one.severity for one in lint.findings)
    parts = [_count(counts[severity], severity) for severity in SEVERITIES if counts[severity]]
    where = f"in {_count(lint.files, 'file')} ({_count(lint.statements, 'statement')})"
    allowed = f"; {lint.allowed} allowed by comments" if lint.allowed else ""
    also = f"; squawk {lint.squawk} looked too" if lint.squawk else ""
    return f"{' · '.join(parts) or 'No hazards'} {where}{allowed}{also}."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def show(lint: Lint) -> None:
    """Print every finding with its line and its safe SQL, and the counts."""
    for one in lint.findings[:FINDINGS_SHOWN_MAX]:
        click.echo(f"{one.place}: ", nl=False)
        click.secho(one.severity, fg=COLOURS[one.severity], bold=True, nl=False)
        click.echo(f" {one.rule}\n  {one.sentence}")
        if one.place.excerpt:
            click.secho(f"  > {one.place.excerpt.strip()}", dim=True)
        for line in one.safe_sql.splitlines():
            click.secho(f"      {line}", fg="green")
        click.echo()
    if len(lint.findings) > FINDINGS_SHOWN_MAX:
        click.echo(f"and {len(lint.findings) - FINDINGS_SHOWN_MAX} more; --json has them all.")
    click.echo(summarize(lint))


def write_markdown(lint: Lint) -> str:
    """Return the findings as a comment on a pull request."""
    lines = [f"### Migrations: {summarize(lint)}", ""]
    for one in lint.findings[:FINDINGS_SHOWN_MAX]:
        lines += [f"- **{one.severity}** `{one.rule}` at `{one.place}`<br>{one.sentence}", *_fold(one)]
    if len(lint.findings) > FINDINGS_SHOWN_MAX:
        lines.append(f"- and {len(lint.findings) - FINDINGS_SHOWN_MAX} more")
    return "\n".join(lines).rstrip()


def _fold(one: Finding) -> list[str]:
    if not one.safe_sql:
        return []
    sql = [f"  {line}" for line in one.safe_sql.splitlines()]
    return [
        "",
        "  <details><summary>The safe way</summary>",
        "",
        "  ```sql",
        *sql,
        "  ```",
        "  </details>",
        "",
    ]


def write_sarif(lint: Lint) -> dict[str, Any]:
    """Return the findings in the format that code scanning reads (SARIF 2.1.0)."""
    named = {one.rule for one in lint.findings}
    driver = {
        "name": "tollbook migrate lint",
        "rules": [_describe(rule) for rule in RULES if rule.id in named],
    }
    results = [_write_result(one) for one in lint.findings]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }


def _describe(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.what},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.safe},
        "defaultConfiguration": {"level": SARIF_LEVELS[rule.severity]},
    }


def _write_result(one: Finding) -> dict[str, Any]:
    text = f"{one.sentence}\n{one.safe_sql}".strip()
    where: dict[str, Any] = {"artifactLocation": {"uri": _relate(one.place.path)}}
    if one.place.line is not None:
        where["region"] = {"startLine": one.place.line, "startColumn": one.place.column or 1}
    return {
        "ruleId": one.rule,
        "level": SARIF_LEVELS[one.severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": where}],
    }


def _relate(path: str) -> str:
    """Return a path as seen from the working folder, which in a pipeline is the repository's root."""
    full = Path(path).resolve()
    return full.relative_to(Path.cwd()).as_posix() if full.is_relative_to(Path.cwd()) else full.as_uri()


def show_rules() -> None:
    """Print every rule in a line."""
    width = max(len(rule.id) for rule in RULES)
    for rule in RULES:
        click.secho(f"{rule.severity:8}", fg=COLOURS[rule.severity], nl=False)
        click.echo(f"{rule.id:{width}}  {rule.what}")


def list_rules() -> list[dict[str, Any]]:
    """Return every rule as --json prints it."""
    return [
        {
            "id": rule.id,
            "severity": rule.severity,
            "what": rule.what,
            "why": rule.why,
            "safe": rule.safe,
            "example": rule.example.sql,
            "squawk": rule.squawk,
        }
        for rule in RULES
    ]
