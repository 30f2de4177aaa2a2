"""A name longer than PostgreSQL keeps."""

from collections.abc import Iterable

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.rules.reserved_name import name_made
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import NAME_BYTES_MAX


def check(unit: Unit) -> Iterable[Hit]:
    # The grammar has cut the names already, as the server would: so the text is asked.
    for what, name in name_made(unit):
        size = len(name.encode())
        if size >= NAME_BYTES_MAX and (full := _find_full(unit.text, name)) and full != name:
            yield Hit(
                f"The {what} {full[:20]}… has {len(full.encode())} bytes; PostgreSQL cuts it to {name}, with "
                "only a notice.",
            )


def _find_full(text: str, cut: str) -> str:
    """Return the name as it is written, from where the cut one is found."""
    at = text.find(cut)
    if at < 0:
        at = text.lower().find(cut)
    end = at
    while 0 <= end < len(text) and (text[end].isalnum() or text[end] in "_$"):
        end += 1
    return text[at:end].lower() if at >= 0 else ""


RULE = Rule(
    "long-name",
    "warning",
    str(__doc__),
    "What is beyond 63 bytes is cut off. Two long names may then be one (IF NOT EXISTS makes only the "
    "first), and tools that look for the full name do not find it.",
    "Give it a name of at most 63 bytes.",
    Example(
        "CREATE INDEX CONCURRENTLY orders_by_status_and_customer_for_the_monthly_statement_of_accounts ON "
        "orders (status);"
    ),
    check,
    spares_new=False,
    down=False,
    squawk=("identifier-too-long",),
)
