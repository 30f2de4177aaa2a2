"""The schema of a database as a picture: its tables, their columns and keys, and what refers to what."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tollbook.migrate import arrangement, paper
from tollbook.migrate.arrangement import Box
from tollbook.migrate.session import Connection, connected, name_target, read_url

TABLES_MAX = 2_000
COLUMNS_SHOWN_MAX = 60
CHARACTER = 7.3  # the width of a character of 12 pixels in a font of one width
ROW, HEAD = 20, 28
PADDING, TAG = 12, 26
TYPE_CHARACTERS_MAX = 28


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its type as PostgreSQL writes it; key: of the primary key; refers: of a foreign key."""

    name: str
    type: str
    required: bool
    key: bool
    refers: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its columns in order."""

    schema: str
    name: str
    columns: tuple[Column, ...]

    @property
    def id(self) -> str:
        """Its full name."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key: from a table and its columns to another. one: at most one row refers to each."""

    name: str
    source: str
    columns: tuple[str, ...]
    target: str
    one: bool


@dataclass(frozen=True, slots=True)
class Diagram:
    """What there is to draw of a database."""

    database: str
    tables: tuple[Table, ...]
    references: tuple[Reference, ...]


def read(url: str) -> Diagram:
    """Read the tables of a database but for those of extensions, partitions and the engine's own."""
    with connected(url) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        tables = _read_tables(conn)
        known = {table.id for table in tables}
        references = tuple(
            one for one in _read_references(conn) if one.source in known and one.target in known
        )
        return Diagram(name_target(read_url(url)), tables, references)


def _read_tables(conn: Connection) -> tuple[Table, ...]:
    rows = conn.execute(
        """SELECT n.nspname::text, c.relname::text, coalesce(json_agg(json_build_array(
                a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p'
                    AND a.attnum = ANY(k.conkey)),
                EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f'
                    AND a.attnum = ANY(k.conkey))
            ) ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '[]')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
          AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tollbook_migrate')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'
            AND d.classid = 'pg_class'::regclass)
        GROUP BY n.nspname, c.relname ORDER BY n.nspname, c.relname LIMIT %(most)s""",
        {"most": TABLES_MAX},
    )
    return tuple(
        Table(schema, name, tuple(Column(*column) for column in columns)) for schema, name, columns in rows
    )


def _read_references(conn: Connection) -> list[Reference]:
    rows = conn.execute(
        """SELECT k.conname::text, sn.nspname || '.' || s.relname,
            ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (number, place)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
            tn.nspname || '.' || t.relname,
            EXISTS (SELECT FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indisunique
                AND i.indpred IS NULL AND i.indnkeyatts > 0
                AND (SELECT array_agg(x) FROM unnest(i.indkey::int2[]) AS x) <@ k.conkey)
        FROM pg_constraint k JOIN pg_class s ON s.oid = k.conrelid
        JOIN pg_namespace sn ON sn.oid = s.relnamespace JOIN pg_class t ON t.oid = k.confrelid
        JOIN pg_namespace tn ON tn.oid = t.relnamespace
        WHERE k.contype = 'f' AND k.conparentid = 0 ORDER BY 2, 1"""
    )
    return [
        Reference(name, source, tuple(columns), target, one) for name, source, columns, target, one in rows
    ]


def draw_svg(diagram: Diagram) -> str:
    """Return the picture as a file of its own."""
    svg = _draw(diagram)
    return svg.replace("<style>", f"<style>{paper.COLOURS}", 1)


def draw_html(diagram: Diagram) -> str:
    """Return the picture in a page: a table that is pointed at shows what it refers to, and what to it."""
    said = f"{len(diagram.tables)} tables, {len(diagram.references)} references"
    body = f'<div class="sheet">{_draw(diagram)}</div><script>{_SCRIPT}</script>'
    return paper.write_page(f"Schema of {paper.shorten(diagram.database)}", said, _PAGE_STYLE, body)


_PAGE_STYLE = """
.sheet { overflow: auto; max-height: calc(100vh - 110px); border: 1px solid var(--line); border-radius: 8px; }
.sheet svg { display: block; }
"""
_STYLE = """
svg { background: var(--ground); font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.card { fill: var(--card); stroke: var(--line); }
.head { fill: hsl(var(--hue) 45% var(--head-light)); }
.title { font-weight: 700; fill: hsl(var(--hue) 45% var(--head-ink)); }
.name { fill: var(--ink); } .type, .more { fill: var(--soft); } .tag { fill: var(--key); font-size: 9px; }
.rule { stroke: var(--line); }
.edge { fill: none; stroke: var(--edge); stroke-width: 1.3; }
.dim { opacity: 0.15; } .lit .edge { stroke: var(--mark); stroke-width: 2; } g { transition: opacity 0.1s; }
"""
_SCRIPT = """
const all = [...document.querySelectorAll('[data-table], [data-from]')];
const show = (name) => {
  const near = new Set([name]);
  for (const one of all) if (one.dataset.from === name) near.add(one.dataset.to);
    else if (one.dataset.to === name) near.add(one.dataset.from);
  for (const one of all) {
    const lit = one.dataset.from === name || one.dataset.to === name;
    one.classList.toggle('lit', name !== null && lit);
    one.classList.toggle('dim', name !== null && !lit && !near.has(one.dataset.table));
  }
};
for (const one of all) if (one.dataset.table) {
  one.addEventListener('mouseenter', () => show(one.dataset.table));
  one.addEventListener('mouseleave', () => show(null));
}
"""


def _draw(diagram: Diagram) -> str:
    boxes = {table.id: _measure(table) for table in diagram.tables}
    links = [(one.source, one.target) for one in diagram.references]
    sheet = arrangement.place(boxes, links)
    width, height = sheet.width, sheet.height
    tables = {table.id: table for table in diagram.tables}
    parts = [
        _draw_edge(one, tables, boxes, sheet.lanes.get((one.source, one.target), ()))
        for one in diagram.references
    ]
    parts += [_draw_table(table, boxes[table.id]) for table in diagram.tables]
    if not diagram.tables:
        parts.append('<text class="type" x="24" y="40">There are no tables.</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>"
    )


def _measure(table: Table) -> Box:
    shown = table.columns[:COLUMNS_SHOWN_MAX]
    more = len(table.columns) > len(shown)
    widest = max((len(one.name) + len(_name_type(one)) + 3 for one in shown), default=0)
    characters = max(widest + TAG / CHARACTER, len(_name(table)) + 1)
    return Box(characters * CHARACTER + 2 * PADDING, HEAD + ROW * (len(shown) + more) + 6)


def _name(table: Table) -> str:
    return table.name if table.schema == "public" else table.id


def _name_type(column: Column) -> str:
    text = column.type.replace("timestamp with time zone", "timestamptz").replace(
        "character varying", "varchar"
    )
    short = text if len(text) <= TYPE_CHARACTERS_MAX else f"{text[: TYPE_CHARACTERS_MAX - 1]}…"
    return short if column.required else f"{short}?"


def _draw_table(table: Table, box: Box) -> str:
    hue = zlib.crc32(table.schema.encode()) % 360
    width, height = box.width, box.height
    lines = [
        f'<g data-table="{escape(table.id)}" transform="translate({box.x:.1f} {box.y:.1f})">',
        f'<rect class="card" width="{width:.1f}" height="{height:.1f}" rx="6"/>',
        f'<path class="head" style="--hue:{hue}" d="M0.5 {HEAD}V6.5a6 6 0 0 1 6-6H{width - 6.5:.1f}'
        f'a6 6 0 0 1 6 6V{HEAD}z"/>',
        f'<text class="title" style="--hue:{hue}" x="{PADDING}" y="19">{escape(_name(table))}</text>',
    ]
    for place, column in enumerate(table.columns[:COLUMNS_SHOWN_MAX]):
        y = HEAD + ROW * place + 16
        tag = "PK" if column.key else "FK" if column.refers else ""
        lines.append(
            (f'<text class="tag" x="{PADDING}" y="{y - 1}">{tag}</text>' if tag else "")
            + f'<text class="name" x="{PADDING + TAG}" y="{y}">{escape(column.name)}</text>'
            f'<text class="type" x="{width - PADDING:.1f}" y="{y}" text-anchor="end">'
            f"{escape(_name_type(column))}</text>"
        )
    left = len(table.columns) - COLUMNS_SHOWN_MAX
    if left > 0:
        y = HEAD + ROW * COLUMNS_SHOWN_MAX + 16
        lines.append(f'<text class="more" x="{PADDING + TAG}" y="{y}">and {left} more</text>')
    return "".join([*lines, "</g>"])


def _draw_edge(one: Reference, tables: dict[str, Table], boxes: dict[str, Box], lanes: Sequence[Box]) -> str:
    source, target = boxes[one.source], boxes[one.target]
    start_y = source.y + _find_row(tables[one.source], one.columns)
    end_y = target.y + HEAD / 2
    title = f"<title>{escape(one.name)}: {escape(one.source)} to {escape(one.target)}</title>"
    path, start, start_side, end, end_side = _route(source, target, start_y, end_y, lanes)
    foot = _bar(start, start_y, start_side, 9) if one.one else _crow(start, start_y, start_side)
    path += foot + _bar(end, end_y, end_side, 9)
    return (
        f'<g data-from="{escape(one.source)}" data-to="{escape(one.target)}">{title}'
        f'<path class="edge" d="{path}"/></g>'
    )


def _route(
    source: Box, target: Box, start_y: float, end_y: float, lanes: Sequence[Box]
) -> tuple[str, float, int, float, int]:
    """Return the line, and where and on which side (1 is right) it leaves and arrives."""
    if source is target or abs(source.x - target.x) < min(source.width, target.width) / 2:
        start, end = source.x + source.width, target.x + target.width
        out = max(start, end) + 44
        return _curve(start, out, start_y, end, out, end_y), start, 1, end, 1
    if target.x < source.x:
        start, side, end = source.x, -1, target.x + target.width
    else:
        start, side, end = source.x + source.width, 1, target.x
    parts: list[str] = []
    x, y = start, start_y
    for lane in lanes:  # these lead to the left
        parts.append(f"{_bend(x, y, lane.x + lane.width, lane.middle, side)}H{lane.x:.1f}")
        x, y = lane.x, lane.middle
    return "".join([*parts, _bend(x, y, end, end_y, side)]), start, side, end, -side


def _bend(start: float, start_y: float, end: float, end_y: float, side: int) -> str:
    bend = side * max(36.0, abs(start - end) / 2)
    return _curve(start, start + bend, start_y, end, end - bend, end_y)


def _curve(start: float, first: float, start_y: float, end: float, second: float, end_y: float) -> str:
    return (
        f"M{start:.1f} {start_y:.1f}C{first:.1f} {start_y:.1f} {second:.1f} {end_y:.1f} {end:.1f} {end_y:.1f}"
    )


def _crow(x: float, y: float, side: int) -> str:
    return f"M{x:.1f} {y - 5:.1f}L{x + side * 9:.1f} {y:.1f}L{x:.1f} {y + 5:.1f}"


def _bar(x: float, y: float, side: int, away: float) -> str:
    return f"M{x + side * away:.1f} {y - 5:.1f}V{y + 5:.1f}"


def _find_row(table: Table, columns: Sequence[str]) -> float:
    names = [column.name for column in table.columns[:COLUMNS_SHOWN_MAX]]
    return HEAD + ROW * (names.index(columns[0]) if columns[0] in names else len(names)) + ROW / 2 + 2
