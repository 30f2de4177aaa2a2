"""How replicas find a row is changed."""

from collections.abc import Iterable

from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import show

SAYS = {
    "n": "NOTHING stops UPDATE and DELETE on it wherever it is published",
    "f": "FULL writes the whole old row into the log, and subscribers find it by reading their table",
}


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_ReplicaIdentity):
        if one.def_.identity_type in SAYS:
            table = show(one.relation)
            yield Hit(
                f"REPLICA IDENTITY {SAYS[one.def_.identity_type]}: {table}.",
                f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT;",
                one.relation,
                at=unit.locate_part(one.def_),
            )


RULE = Rule(
    "replica-identity",
    "warning",
    str(__doc__),
    "Logical replication tells subscribers which row changed by its replica identity: the primary key, by "
    "default.",
    "Give the table a primary key, or a unique index on columns that take no NULL, USING INDEX.",
    Example(
        "ALTER TABLE orders REPLICA IDENTITY NOTHING;",
        Claim(changes="SELECT relreplident FROM pg_class WHERE relname = 'orders'"),
    ),
    check,
    spares_new=False,
)
