"""A change of a column's type that writes the whole table anew."""

from collections.abc import Iterable

from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.column_types import Type
from tollbook.migrate.lint.rule import Claim, Example, Hit, Rule
from tollbook.migrate.lint.trees import is_a
from tollbook.migrate.lint.unit import Alteration, Unit
from tollbook.migrate.lint.words import name_after, quote, show, sql


def check(unit: Unit) -> Iterable[Hit]:
    for one in unit.alterations(AlterTableType.AT_AlterColumnType):
        new = column_types.read(one.def_.typeName)
        column = unit.world.column(one.relation, one.name or "")
        old = column.type if column else None
        if new is None or (column and column.made_in in unit.world.fresh and unit.world.is_new(one.relation)):
            continue
        if hit := _judge(one, old, new, indexed=_is_indexed(unit, one)):
            yield hit


def _is_indexed(unit: Unit, one: Alteration) -> bool:
    table = unit.table(one.relation)
    keys = [item.columns for item in (*table.indexes, *table.constraints)] if table else []
    return table is None or any(one.name in columns or "" in columns for columns in keys)


def _judge(one: Alteration, old: Type | None, new: Type, *, indexed: bool) -> Hit | None:
    table, name = show(one.relation), quote(one.name or "")
    computed = one.def_.raw_default is not None and not _is_plain_cast(one)
    effect = "rewrite" if computed or old is None else column_types.judge(old, new)
    if effect == "free" or (effect == "indexes" and not indexed):
        return None
    if effect == "indexes":
        return Hit(
            f"{table}.{name} from {old} to {new} builds its indexes anew under an ACCESS EXCLUSIVE lock, for "
            "they sort in another way.",
            "",
            one.relation,
        )
    if effect == "indexes in UTC":
        return Hit(
            f"{table}.{name} from {old} to {new} leaves the rows as they are only in a session whose "
            "TimeZone is UTC; else the table is written anew. (Its indexes are, in either case.)",
            f"SET LOCAL timezone = 'UTC';\nALTER TABLE {table} ALTER COLUMN {name} TYPE {new};",
            one.relation,
            "warning",
        )
    known = f"from {old} to {new}" if old else f"to {new} (from a type that these files do not say)"
    return Hit(
        f"{table}.{name} {known} writes the table and its indexes anew under an ACCESS EXCLUSIVE lock.",
        _replace(one, new),
        one.relation,
        None if old else "warning",
    )


def _is_plain_cast(one: Alteration) -> bool:
    """Whether USING says no more than the change itself: the column, or the column cast to the new type."""
    value = one.def_.raw_default
    if is_a(value, ast.TypeCast):
        if column_types.read(value.typeName) != column_types.read(one.def_.typeName):
            return False
        value = value.arg
    return is_a(value, ast.ColumnRef) and value.fields[-1].sval == one.name


def _replace(one: Alteration, new: Type) -> str:
    """Return the steps by a second column, kept equal by a trigger until the code has moved to it."""
    table, old = show(one.relation), quote(one.name or "")
    second = quote(name_after(one.name or "", "new"))
    keep = quote(name_after(one.relation.relname, one.name or "", "copy"))
    kind = sql(one.def_.typeName)
    value = sql(one.def_.raw_default) if one.def_.raw_default is not None else f"{old}::{kind}"
    fresh = (
        f"NEW.{old}::{kind}" if one.def_.raw_default is None else f"(SELECT {value} FROM (SELECT NEW.*) AS n)"
    )
    return (
        f"ALTER TABLE {table} ADD COLUMN {second} {kind};\n"
        f"CREATE FUNCTION {keep}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$\n"
        f"BEGIN NEW.{second} := {fresh}; RETURN NEW; END $$;\n"
        f"CREATE TRIGGER {keep} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {keep}();\n"
        "-- In batches, each committed, until it updates none:\n"
        f"UPDATE {table} SET {second} = {value} WHERE ctid = ANY (ARRAY(\n"
        f"    SELECT ctid FROM {table} WHERE {second} IS NULL AND {old} IS NOT NULL LIMIT 1000\n"
        "    FOR UPDATE SKIP LOCKED));\n"
        f"-- Then release code that uses {second}, and drop the trigger and the old column later."
    )


RULE = Rule(
    "change-column-type",
    "error",
    str(__doc__),
    "ALTER COLUMN TYPE holds ACCESS EXCLUSIVE while every row and every index is written: nobody reads or "
    "writes for as long, and the table needs its size in disk again. Free are: varchar grown or made text, "
    "text to varchar without a length, numeric grown at the same scale or made unlimited, times of finer "
    "precision, cidr to inet, and timestamp to timestamptz in a session whose TimeZone is UTC.",
    "Add a second column, keep it equal by a trigger, fill it in batches, release code that uses it, and "
    "drop the old one in a later release.",
    Example(
        "ALTER TABLE orders ALTER COLUMN total TYPE double precision;",
        Claim("AccessExclusiveLock", rewrite=True),
    ),
    check,
    squawk=("changing-column-type",),
)
