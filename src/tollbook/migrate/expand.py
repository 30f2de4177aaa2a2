"""Renames, new types and NOT NULL on a table in use, written as migrations to be read before they are run.

Expand: the new beside the old, a trigger that keeps both the same, a back-fill. Then the code changes over.
Contract: the old goes. No step holds a lock for longer than a moment, and no write is lost between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Template

from psycopg import sql

from tollbook.migrate import expand_texts as texts
from tollbook.migrate import formats
from tollbook.migrate.errors import MigrateError, WrongUsage
from tollbook.migrate.files import Folder
from tollbook.migrate.session import Connection, connected

NAME_BYTES_MAX = 63
BATCH_ROWS = 1_000
INDEXES_MAX = 100
DOT, OPENING, CLOSING = "ASCII_46", "ASCII_40", "ASCII_41"  # as the grammar names its tokens


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the catalog has it; all names are quoted. indexes and references: definitions and names."""

    table: str
    bare_table: str
    schema: str
    name: str
    type: str
    not_null: bool
    default: str | None
    key: tuple[str, ...]
    indexes: tuple[tuple[str, str], ...]
    references: tuple[tuple[str, str], ...]
    checks: tuple[str, ...]


def rename_column(url: str, folder: Folder, table: str, column: str, new: str) -> tuple[Path, ...]:
    """Write the migrations that give a column a second name. Raises MigrateError where they would not do."""
    one = _read(url, table, column)
    values = _name(one, column, new) | {"old": one.name, "new": _quote(new), "type": one.type}
    label = f"{one.bare_table}_{column}_to_{new}"
    made = _write(folder, f"{label}_expand", values, texts.RENAME_UP, texts.BOTH_DOWN, texts.COPY)
    return made + _write_ready(folder, one, f"{label}_ready", values)


def change_type(
    url: str, folder: Folder, table: str, column: str, kind: str, *, using: str | None = None
) -> tuple[Path, ...]:
    """Write the migrations that give a column another type under its own name.

    using: the new value, as SQL, of the column's own name; without it, the value is cast.
    """
    one = _read(url, table, column)
    new, old = f"{column}_new", f"{column}_old"
    cast = using or f"{one.name}::{kind}"
    values = _name(one, column, new) | {"old": one.name, "new": _quote(new), "type": kind}
    values |= {"cast": cast, "cast_new": _of_row(cast, one.name)}
    label = f"{one.bare_table}_{column}_type"
    made = _write(folder, f"{label}_expand", values, texts.TYPE_UP, texts.BOTH_DOWN, texts.CAST)
    made += _write_ready(folder, one, f"{label}_ready", values)
    swap = values | {f"back_{key}": value for key, value in _name(one, old, column).items()}
    swap |= {"kept": _quote(old), "old_type": one.type}
    swap["defaults"] = _swap_default(one, _quote(old)) if one.default else ""
    swap["loosen"] = (
        f"ALTER TABLE {one.table} ALTER COLUMN {_quote(old)} DROP NOT NULL;\n" if one.not_null else ""
    )
    return made + _write(folder, f"{label}_switch", swap, texts.SWITCH_UP, None)


def add_not_null(url: str, folder: Folder, table: str, column: str, value: str) -> tuple[Path, ...]:
    """Write the migrations that make a column NOT NULL; value is the SQL that stands in for NULL."""
    one = _read(url, table, column)
    if one.not_null:
        raise MigrateError(f"{table}.{column} is NOT NULL already.")
    values = _name(one, column, column) | {"old": one.name, "new": one.name, "value": value}
    values["constraint"] = _quote(_shorten(f"{one.bare_table}_{column}_not_null"))
    label = f"{one.bare_table}_{column}_not_null"
    made = _write(folder, f"{label}_expand", values, texts.NOT_NULL_UP, texts.NOT_NULL_DOWN, texts.FILL)
    return made + _write(folder, f"{label}_ready", values, texts.VALIDATE, texts.LOOSEN)


def contract(url: str, folder: Folder, table: str, old: str, new: str) -> tuple[Path, ...]:
    """Write the last migration: the trigger goes, and the old column with it, once nobody uses it.

    After change_type, old is COLUMN_old and new is COLUMN; after add_not_null both are the column.
    """
    one = _read(url, table, old)
    values = _name(one, old, new) | {"old": one.name, "new": _quote(new)}
    with connected(url) as conn:
        _check_trigger(conn, one, values["trigger"], old, new)
    default = f"ALTER TABLE {one.table} ALTER COLUMN {_quote(new)} SET DEFAULT {one.default};\n"
    values["default"] = default if one.default and old != new else ""
    # After change_type the two are of different types, and the old one is NULL where a value does not fit.
    kept = old == f"{new}_old"
    values["lost"] = (
        f"{_quote(new)} IS NULL AND {one.name} IS NOT NULL"
        if kept
        else f"ROW({_quote(new)})::record *<> ROW({one.name})::record"
    )
    label = f"{one.bare_table}_{old}_contract"
    return _write(folder, label, values, texts.CONTRACT_SAME if old == new else texts.CONTRACT, None)


def _check_trigger(conn: Connection, one: Column, trigger: str, old: str, new: str) -> None:
    row = conn.execute(
        """SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s)
            AND quote_ident(tgname) = %(trigger)s)""",
        {"table": one.table, "trigger": trigger},
    ).fetchone()
    if not (row and row[0]):
        raise MigrateError(
            f"{one.table} has no trigger {trigger}: {old} and {new} were not expanded here. Apply the "
            "expanding migrations first; after change-type write COLUMN_old COLUMN."
        )


def _write_ready(folder: Folder, one: Column, label: str, values: dict[str, str]) -> tuple[Path, ...]:
    """Write what makes the new column as good as the old: its indexes, references and NOT NULL."""
    new = values["new"]
    parts = [f"{_rename_in(text, one, new, name)};" for name, text in one.indexes]
    downs = [f"DROP INDEX CONCURRENTLY IF EXISTS {_place(one, name)};" for name, _ in one.indexes]
    for name, definition in one.references:
        made = _quote(_shorten(f"{name}_new"))
        text = definition.replace(f"({one.name})", f"({new})", 1)
        parts.append(f"ALTER TABLE {one.table} ADD CONSTRAINT {made} {text} NOT VALID;")
        parts.append(f"ALTER TABLE {one.table} VALIDATE CONSTRAINT {made};")
        downs.append(f"ALTER TABLE {one.table} DROP CONSTRAINT IF EXISTS {made};")
    if one.not_null:
        constraint = _quote(_shorten(f"{label}_not_null"))
        parts.append(Template(texts.TIGHTEN).substitute(values, constraint=constraint))
        downs.append(f"ALTER TABLE {one.table} ALTER COLUMN {new} DROP NOT NULL;")
    notes = [f"-- To be written for {new} by hand, if it is to hold for it: {check}" for check in one.checks]
    if not parts and not notes:
        return ()
    up = texts.READY_HEAD + "\n".join([*notes, *parts]) + "\n"
    return _write(
        folder, label, {}, up.replace("$", "$$"), texts.OFF + "\n".join(downs).replace("$", "$$") + "\n"
    )


def _rename_in(definition: str, one: Column, new: str, name: str) -> str:
    """Return an index's definition for the new column, under a name of its own."""
    head, using, tail = definition.partition(" USING ")
    unique = "UNIQUE " if head.startswith("CREATE UNIQUE") else ""
    named = _quote(_shorten(f"{name}_new"))
    return f"CREATE {unique}INDEX CONCURRENTLY {named} ON {one.table}{using}{_swap(tail, one.name, new)}"


def _swap(text: str, old: str, new: str) -> str:
    """Return SQL with one column's name in place of another's, with or without its table, by the grammar.

    A function, a type or a part of a value of that name stays.
    """
    from pglast.parser import scan

    tokens = scan(text)
    names = ["", *(token.name for token in tokens), ""]
    pieces, done = list[str](), 0
    for place, token in enumerate(tokens):
        if "CONST" in token.name or _unquote(text[token.start : token.end + 1]) != _unquote(old):
            continue
        first = place
        while names[first] == DOT and first >= 2:
            first -= 2
        elsewhere = names[place + 2] == OPENING or names[first] in ("TYPECAST", "AS", DOT)
        if not elsewhere and names[first + 1] != CLOSING:
            pieces += [text[done : tokens[first].start], new]
            done = token.end + 1
    return "".join([*pieces, text[done:]])


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def _of_row(expression: str, column: str) -> str:
    """Return an expression over a column as one over a trigger's new row."""
    return _swap(expression, column, f"NEW.{column}")


def _swap_default(one: Column, kept: str) -> str:
    return (
        f"ALTER TABLE {one.table} ALTER COLUMN {one.name} SET DEFAULT {one.default};\n"
        f"ALTER TABLE {one.table} ALTER COLUMN {kept} DROP DEFAULT;\n"
    )


def _name(one: Column, old: str, new: str) -> dict[str, str]:
    """Return the names and conditions that all of a column's files share."""
    key = list(one.key)
    name = _quote(_shorten(f"zz_expand_{one.bare_table}_{old}_{new}"))
    whole = key[0] if len(key) == 1 else f"({', '.join(key)})"
    between = (
        f"{whole} BETWEEN :first AND :last" if len(key) == 1 else f"{whole} >= :first AND {whole} <= :last"
    )
    return {
        "table": one.table,
        "trigger": name,
        "function": f"{_quote(one.schema)}.{name}",
        "key": ",".join(_unquote(part) for part in key),
        "range": between,
        "batch": str(BATCH_ROWS),
    }


def _write(
    folder: Folder, label: str, values: dict[str, str], up: str, down: str | None, fill: str | None = None
) -> tuple[Path, ...]:
    paths = formats.create_pair(folder, label)
    paths[0].write_text(Template(up).substitute(values), encoding="utf-8")
    if down is None:
        paths[1].unlink()
        paths = paths[:1]
    else:
        paths[1].write_text(Template(down).substitute(values), encoding="utf-8")
    if fill is None:
        return tuple(paths)
    path = paths[0].with_name(paths[0].name.replace(".up.sql", ".backfill.sql"))
    path.write_text(Template(fill).substitute(values), encoding="utf-8")
    return (*paths, path)


def _read(url: str, table: str, column: str) -> Column:
    with connected(url) as conn:
        row = conn.execute(
            """SELECT t.oid, n.nspname, c.relname, quote_ident(a.attname),
                format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
                a.attidentity <> '' OR a.attgenerated <> '' AS made,
                EXISTS (SELECT FROM pg_constraint k WHERE (k.conrelid = t.oid AND k.contype = 'p'
                        AND a.attnum = ANY(k.conkey))
                    OR (k.confrelid = t.oid AND k.contype = 'f' AND a.attnum = ANY(k.confkey))) AS is_key,
                c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = t.oid) AS has_heirs,
                c.relkind = 'p' AS partitioned
            FROM (SELECT to_regclass(%(table)s)::oid AS oid) t JOIN pg_class c ON c.oid = t.oid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = %(column)s AND NOT a.attisdropped
                AND a.attnum > 0
            LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
            WHERE c.relkind IN ('r', 'p')""",
            {"table": table, "column": column},
        ).fetchone()
        if row is None:
            raise WrongUsage(f"There is no table {table} with a column {column} here.")
        oid, schema, bare, name, kind, not_null, default, made, is_key, has_heirs, partitioned = row
        if made or is_key:
            raise MigrateError(
                f"{table}.{column} is a key that others hold on to, or makes its own values: these steps "
                "would not do for it. Write them by hand; docs/expand-contract.md says what to mind."
            )
        if has_heirs:
            raise MigrateError(
                f"Tables inherit from {table}; what is written to them, no trigger of it sees."
            )
        full = f"{_quote(schema)}.{_quote(bare)}"
        key = _find_key(conn, oid, full)
        if " " in full or any({*part[1:-1]} & {*' ,"'} for part in key):
            raise MigrateError(
                f"A back-fill's header takes no blanks, commas or quotes in names, as {full} or its key has."
            )
        indexes, references, checks = _read_dependents(conn, oid, column)
        if partitioned:  # nothing is built concurrently there, nor added unvalidated before PostgreSQL 18
            checks += tuple(text for _, text in indexes + references)
            indexes = references = ()
        return Column(full, bare, schema, name, kind, not_null, default, key, indexes, references, checks)


def _find_key(conn: Connection, oid: int, table: str) -> tuple[str, ...]:
    row = conn.execute(
        """SELECT array_agg(quote_ident(a.attname) ORDER BY x.place) FROM pg_index i
        CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS x (number, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.number
        WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
          AND i.indexprs IS NULL AND x.place <= i.indnkeyatts
        GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
        ORDER BY i.indisprimary DESC, count(*) LIMIT 1""",
        {"oid": oid},
    ).fetchone()
    if row is None:
        raise MigrateError(f"{table} has no unique key of columns that are NOT NULL, so it cannot be filled.")
    return tuple(row[0])


Named = tuple[tuple[str, str], ...]


def _read_dependents(conn: Connection, oid: int, column: str) -> tuple[Named, Named, tuple[str, ...]]:
    """Return the column's indexes, the tables it refers to, and the checks that speak of it."""
    rows = conn.execute(
        """SELECT 'index', c.relname, pg_get_indexdef(i.indexrelid)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = %(oid)s AND i.indisvalid AND EXISTS (SELECT FROM pg_depend p
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.refobjsubid
            LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('u', 'x')
            WHERE a.attname = %(column)s AND p.refobjid = i.indrelid
              AND p.objid IN (i.indexrelid, k.oid))
        UNION ALL SELECT k.contype::text, k.conname, pg_get_constraintdef(k.oid)
        FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
        WHERE k.conrelid = %(oid)s AND a.attname = %(column)s AND k.contype IN ('f', 'c')
        ORDER BY 1, 2 LIMIT %(most)s""",
        {"oid": oid, "column": column, "most": INDEXES_MAX},
    ).fetchall()
    return (
        _pick(rows, "index"),
        tuple((name, text) for kind, name, text in rows if kind == "f" and text.count(",") == 0),
        tuple(text for kind, _, text in rows if kind == "c" or (kind == "f" and text.count(",") > 0)),
    )


def _pick(rows: Sequence[tuple[str, str, str]], wanted: str) -> Named:
    return tuple((name, text) for kind, name, text in rows if kind == wanted)


def _place(one: Column, name: str) -> str:
    return f"{_quote(one.schema)}.{_quote(_shorten(f'{name}_new'))}"


def _quote(name: str) -> str:
    """Return a name as PostgreSQL's quote_ident would: bare where it may be."""
    plain = (
        name.isascii() and name.replace("_", "a").isalnum() and name == name.lower() and not name[0].isdigit()
    )
    return name if plain and not _is_reserved(name) else sql.Identifier(name).as_string(None)


def _is_reserved(name: str) -> bool:
    from pglast.keywords import RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS

    return name in RESERVED_KEYWORDS or name in TYPE_FUNC_NAME_KEYWORDS


def _shorten(name: str) -> str:
    """Return a name that the server does not cut: a long one ends in a digest of all of it."""
    if len(name.encode()) <= NAME_BYTES_MAX:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: NAME_BYTES_MAX - 9].decode(errors="ignore") + "_" + digest
