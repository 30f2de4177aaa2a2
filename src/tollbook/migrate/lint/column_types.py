"""Types of columns: which changes PostgreSQL makes without touching a row, and which lose something."""

from dataclasses import dataclass
from typing import Any, Literal

from pglast import ast

from tollbook.migrate.lint.trees import is_a

INTEGERS = {"int2": 5, "int4": 10, "int8": 19}  # with the digits they hold at most
FLOATS = {"float4": 1, "float8": 2}
STRINGS = ("text", "varchar")
# With a precision in fractions of a second, which may grow without touching a row.
PRECISE = ("timestamp", "timestamptz", "time", "timetz", "interval")
SERIALS = {"smallserial": "int2", "serial2": "int2", "serial": "int4", "serial4": "int4",
           "bigserial": "int8", "serial8": "int8"}  # fmt: skip
SPELT = {"int2": "smallint", "int4": "integer", "int8": "bigint", "float4": "real", "bool": "boolean",
         "float8": "double precision", "bpchar": "char", "timestamptz": "timestamptz"}  # fmt: skip
TIME_DIGITS_MAX = 6
INTERVAL_ALL_FIELDS = 0x7FFF

Effect = Literal["free", "indexes", "indexes in UTC", "rewrite"]


@dataclass(frozen=True, slots=True)
class Type:
    """A type as a column has it: its name without pg_catalog, its modifiers, and whether it is an array."""

    name: str
    mods: tuple[int, ...] = ()
    array: bool = False

    def __str__(self) -> str:
        mods = f"({','.join(str(mod) for mod in self.mods)})" if self.mods else ""
        return f"{SPELT.get(self.name, self.name)}{mods}{'[]' if self.array else ''}"


def read(node: Any) -> Type | None:
    """Return the type that a TypeName says, with serials as the integers they are."""
    if node is None or not node.names:
        return None
    words = [name.sval for name in node.names]
    name = words[-1] if words[0] == "pg_catalog" or len(words) == 1 else ".".join(words)
    mods = tuple(
        mod.val.ival for mod in node.typmods or () if is_a(mod, ast.A_Const) and is_a(mod.val, ast.Integer)
    )
    return Type(SERIALS.get(name, name), mods, bool(node.arrayBounds))


def is_serial(node: Any) -> bool:
    """Whether a TypeName is one of the serials, which are no types but a default."""
    return node is not None and len(node.names or ()) == 1 and node.names[0].sval in SERIALS


def judge(old: Type, new: Type) -> Effect:
    """Return what changing a column from one type to another does to the table.

    Free is a change of the catalog alone; indexes: those of the column are built anew, as the type sorts by
    other rules. What cannot be told is a rewrite: PostgreSQL's own default.
    """
    if old == new:
        return "free"
    if old.array or new.array:
        return "rewrite"
    if {old.name, new.name} == {"timestamp", "timestamptz"} and not new.mods:
        return "indexes in UTC"
    if not new.mods and ("citext" in (old.name, new.name) or old.name == "bit") and _is_alike(old, new):
        return "indexes"
    return "free" if _is_free(old, new) else "rewrite"


def _is_alike(old: Type, new: Type) -> bool:
    """Whether two types keep the same bytes, though they compare them in other ways."""
    names = {old.name, new.name}
    return names <= {"citext", *STRINGS} or (old.name, new.name) == ("bit", "varbit")


def _is_free(old: Type, new: Type) -> bool:
    if new.name in STRINGS and old.name in STRINGS:
        return not new.mods or (bool(old.mods) and old.mods[0] <= new.mods[0])
    if (old.name, new.name) == ("cidr", "inet") or (
        old.name == "xml" and new.name in STRINGS and not new.mods
    ):
        return True
    if old.name != new.name:
        return False
    if new.name == "numeric":
        return not new.mods or (bool(old.mods) and old.mods[0] <= new.mods[0] and _scale(old) == _scale(new))
    if new.name == "varbit":
        return not new.mods or (bool(old.mods) and old.mods[0] <= new.mods[0])
    if new.name == "interval":
        return _interval(old) <= _interval(new)
    return new.name in PRECISE and _digits(old) <= _digits(new)


def _scale(one: Type) -> int:
    return one.mods[1] if len(one.mods) > 1 else 0


def _digits(one: Type) -> int:
    return one.mods[-1] if one.mods else TIME_DIGITS_MAX


def _interval(one: Type) -> int:
    """Return an interval's precision; one with fewer fields (interval year) has the least."""
    if not one.mods or one.mods[0] == INTERVAL_ALL_FIELDS:
        return one.mods[1] if len(one.mods) > 1 else TIME_DIGITS_MAX
    return -1


def find_loss(old: Type | None, new: Type) -> str:
    """Return what a change of type can lose or fail for, or nothing. Without the old type, what it may."""
    if old is None or old == new or old.array or new.array:
        return ""
    for find in (_lose_numbers, _lose_text, _lose_time):
        if loss := find(old, new):
            return loss
    return ""


def _lose_numbers(old: Type, new: Type) -> str:
    if new.name in INTEGERS and old.name in INTEGERS and INTEGERS[old.name] > INTEGERS[new.name]:
        return f"a number beyond {new} stops the migration"
    if new.name in INTEGERS and old.name in ("numeric", *FLOATS):
        return "fractions are rounded away, and a number too large stops the migration"
    if new.name in FLOATS and (old.name in ("numeric", "int8") or FLOATS.get(old.name, 0) > FLOATS[new.name]):
        return "digits beyond the new precision are lost"
    if (
        new.name == "numeric"
        and new.mods
        and old.name == "numeric"
        and (
            not old.mods or new.mods[0] - _scale(new) < old.mods[0] - _scale(old) or _scale(new) < _scale(old)
        )
    ):
        return "digits are rounded away, and a number too large stops the migration"
    return ""


def _lose_text(old: Type, new: Type) -> str:
    lengths = ("varchar", "bpchar", "varbit", "bit")
    if new.name in lengths and new.mods and (not old.mods or old.mods[0] > new.mods[0]):
        if old.name in ("text", "varchar", "bpchar", "varbit", "bit"):
            return f"a value longer than {new.mods[0]} stops the migration (or is cut by an explicit cast)"
    elif old.name in STRINGS and new.name not in (*STRINGS, "bpchar", "citext", "name", "bytea"):
        return f"a text that is no {new} stops the migration"
    elif (old.name, new.name) == ("json", "jsonb"):
        return ""
    return ""


def _lose_time(old: Type, new: Type) -> str:
    if old.name in ("timestamp", "timestamptz") and new.name in ("date", "time", "timetz"):
        return "a part of each time is lost"
    if (old.name, new.name) == ("timestamptz", "timestamp"):
        return "the zone is lost: what is kept depends on the session's TimeZone"
    if old.name in PRECISE and old.name == new.name and _digits(new) < _digits(old):
        return "fractions of a second are rounded away"
    return ""
