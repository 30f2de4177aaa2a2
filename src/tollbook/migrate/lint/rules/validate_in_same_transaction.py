"""A constraint is added NOT VALID and validated in the same transaction."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import File
from tollbook.migrate.lint.words import quote, show


def check_file(file: File) -> Iterable[Hit]:
    added: dict[tuple[str, str | None], int] = {}
    for unit in file.units:
        for one in unit.alterations(AlterTableType.AT_AddConstraint):
            if one.def_.skip_validation:
                added[one.relation.relname, one.def_.conname] = unit.transaction
        for one in unit.alterations(AlterTableType.AT_ValidateConstraint):
            if added.get((one.relation.relname, one.name)) == unit.transaction:
                yield Hit(
                    f"{quote(one.name or '')} is validated while the lock of its ADD CONSTRAINT is still "
                    "held: NOT VALID gains nothing.",
                    "-- In the next migration, alone:\n"
                    f"ALTER TABLE {show(one.relation)} VALIDATE CONSTRAINT {quote(one.name or '')};",
                    one.relation,
                    at=unit.index,
                )


RULE = Rule(
    "validate-in-same-transaction",
    "error",
    str(__doc__),
    "Locks are held until the transaction ends: the ACCESS EXCLUSIVE (or, for a foreign key, SHARE ROW "
    "EXCLUSIVE) of ADD CONSTRAINT stays while VALIDATE reads every row.",
    "Put VALIDATE CONSTRAINT into the next migration (or after a COMMIT), where it lets writers in.",
    Example(
        "ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (total > 0) NOT VALID;\n"
        "ALTER TABLE orders VALIDATE CONSTRAINT total_positive;",
        Claim("AccessExclusiveLock", scan=True),
        first="ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (total > 0) NOT VALID;",
    ),
    check_file=check_file,
)
