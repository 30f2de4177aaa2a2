"""A file of several transactions, which can stop half way."""

from collections.abc import Iterable

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import File


def check_file(file: File) -> Iterable[Hit]:
    plain = [unit for unit in file.units if not unit.alone and not unit.block]
    alone = [unit for unit in file.units if unit.alone]
    if alone and plain:
        yield Hit(
            f"{alone[0].alone} runs outside a transaction, so this file is committed in parts: where it "
            "fails, what stands before is done already.",
            f"-- In a file of its own:\n{alone[0].text};",
            at=alone[0].index,
        )


RULE = Rule(
    "half-applied",
    "notice",
    str(__doc__),
    "Statements before the failing one are committed, those behind it are not. The engine knows where to go "
    "on, but until then the schema is one that no release was made for.",
    "One statement that runs outside a transaction for each file.",
    Example(
        "ALTER TABLE orders ADD COLUMN region text;\n"
        "CREATE INDEX CONCURRENTLY orders_region ON orders (region);",
        first="ALTER TABLE orders ADD COLUMN region text;",
    ),
    check_file=check_file,
)
