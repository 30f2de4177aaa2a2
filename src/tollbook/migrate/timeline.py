"""What ran on a database, when, for how long and by whom: the engine's own record as a page."""

from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from tollbook.migrate import history, paper
from tollbook.migrate.session import Connection, connected, name_target, read_url

RUNS_MAX = 2_000
PARTS_MAX = 20_000
BAR_PIXELS = 260


@dataclass(frozen=True, slots=True)
class Part:
    """A migration that a run applied or took back; duration_seconds is None where nothing was run for it.

    reverted_at is set where it was applied and is not in force any more.
    """

    migration: str
    at: datetime
    duration_seconds: float | None
    by: str
    reverted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run: apply, revert or baseline, how it ended (None: not yet), what it did and what it left."""

    command: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    started_by: str
    engine: str
    parts: tuple[Part, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The runs on a database, newest first."""

    database: str
    runs: tuple[Run, ...]


def read(url: str) -> Timeline:
    """Read the runs and what they did, newest first. Raises MigrateError."""
    with connected(url) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        runs = tuple(_read(conn)) if history.exists(conn) else ()
        return Timeline(name_target(read_url(url)), runs)


def _read(conn: Connection) -> list[Run]:
    parts: dict[object, list[Part]] = {}
    for run, *values in conn.execute(
        """SELECT run_id, folder || '/' || name, applied_at, extract(epoch FROM duration)::float8,
            applied_by, reverted_at FROM tollbook_migrate.history
        UNION ALL SELECT reverted_run_id, folder || '/' || name, reverted_at, NULL, '', NULL
        FROM tollbook_migrate.history WHERE reverted_run_id IS NOT NULL
        ORDER BY 3 DESC LIMIT %(most)s""",
        {"most": PARTS_MAX},
    ):
        parts.setdefault(run, []).insert(0, Part(*values))
    rows = conn.execute(
        """SELECT run_id, planned, command, started_at, ended_at, outcome, started_by, engine
        FROM tollbook_migrate.runs ORDER BY started_at DESC LIMIT %(most)s""",
        {"most": RUNS_MAX},
    )
    runs: list[Run] = []
    for run, planned, *values in rows:
        did = tuple(parts.get(run, ()))
        done = {part.migration for part in did}
        runs.append(Run(*values, parts=did, left=tuple(name for name in planned if name not in done)))
    return runs


_STYLE = """
main { max-width: 1000px; }
section { border-left: 2px solid var(--line); padding: 0 0 18px 20px; position: relative; }
section::before { content: ""; position: absolute; left: -7px; top: 6px; width: 12px; height: 12px;
  border-radius: 50%; background: var(--good); box-shadow: 0 0 0 3px var(--ground); }
section.failed::before, section.interrupted::before { background: var(--bad); }
section.open::before { background: var(--key); }
h2 { font-size: 15px; margin: 0; font-weight: 650; }
h2 .outcome { font-weight: 400; color: var(--soft); margin-left: 6px; }
section.failed .outcome, section.interrupted .outcome { color: var(--bad); }
section p { margin: 0 0 6px; color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
td { padding: 4px 12px; border-top: 1px solid var(--line); vertical-align: middle; }
tr:first-child td { border-top: 0; }
td.name { overflow-wrap: anywhere; } td.time { white-space: nowrap; color: var(--soft); text-align: right;
  font-variant-numeric: tabular-nums; width: 90px; }
td.bar { width: 270px; } .bar i { display: block; height: 8px; border-radius: 4px; background: var(--mark); }
.gone { text-decoration: line-through; color: var(--soft); } small { color: var(--soft); }
@media (max-width: 700px) { td.bar { width: 80px; } .bar i { max-width: 80px; } }
"""


def draw(timeline: Timeline) -> str:
    """Return the page."""
    longest = max((part.duration_seconds or 0 for run in timeline.runs for part in run.parts), default=0)
    body = "\n".join(_draw_run(run, longest) for run in timeline.runs) or "<p>Nothing has run here yet.</p>"
    did = sum(len(run.parts) for run in timeline.runs)
    said = f"{len(timeline.runs)} runs, {did} migrations applied or taken back; newest first, times in UTC"
    return paper.write_page(f"Migrations of {paper.shorten(timeline.database)}", said, _STYLE, body)


def _draw_run(run: Run, longest: float) -> str:
    took = f" · {_show_seconds((run.ended_at - run.started_at).total_seconds())}" if run.ended_at else ""
    rows = "".join(_draw_part(part, longest) for part in run.parts)
    if run.left:
        stopped, *others = (escape(name) for name in run.left)
        more = f" and {len(others)} after it" if others else ""
        rows += f'<tr><td class="name"><b>{stopped}</b>{more} not done</td><td></td><td></td></tr>'
    return (
        f'<section class="{run.outcome or "open"}"><h2>{escape(run.command)}'
        f'<span class="outcome">{run.outcome or "not ended"}</span></h2>'
        f"<p>{_show_time(run.started_at)}{took} · {escape(run.started_by)} · "
        f"tollbook {escape(run.engine)}</p>" + (f"<table>{rows}</table>" if rows else "") + "</section>"
    )


def _draw_part(part: Part, longest: float) -> str:
    seconds = part.duration_seconds
    name = f'<span class="{"gone" if part.reverted_at else "here"}">{escape(part.migration)}</span>'
    if part.reverted_at:
        name += f" <small>until {_show_time(part.reverted_at)}</small>"
    width = max(2, round(BAR_PIXELS * seconds / longest)) if seconds and longest else 0
    return (
        f'<tr><td class="name">{name} <small>{escape(part.by)}</small></td>'
        f'<td class="bar"><i style="width:{width}px"></i></td>'
        f'<td class="time">{"" if seconds is None else _show_seconds(seconds)}</td></tr>'
    )


def _show_time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _show_seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
