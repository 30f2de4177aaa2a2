"""What was observed, held against the sizes of the target's tables: where it would hurt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tollbook.migrate.lint.rule import Severity
from tollbook.migrate.observation import ORDER, STOPS_WRITES, Lock, Observation, Written
from tollbook.migrate.shadow import Size

# A table this large is read or written by nobody in the blink of an eye (64 MiB), or within a minute (8 GiB),
# however good the disk: no figure in seconds is given that was not measured.
LARGE_BYTES, HUGE_BYTES = 64 * 2**20, 8 * 2**30
LARGE_ROWS, HUGE_ROWS = 500_000, 50_000_000
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Warned:
    """A statement that would hurt: how much, where in the file, which table of the target, and how."""

    severity: Severity
    line: int
    table: str
    sentence: str


def judge(
    observations: Iterable[Observation], sizes: Mapping[str, Size], *, measured: bool = False
) -> list[Warned]:
    """Return where a script hurts. measured: it ran on the target itself, so that its seconds are real."""
    judges = [_Judge(one, sizes, measured=measured) for one in observations]
    found = [warned for judge in judges for warned in judge.judge()]
    return sorted([*found, *_judge_held(judges, found, sizes)], key=lambda warned: warned.line)


class _Judge:
    """Judges one statement."""

    def __init__(self, one: Observation, sizes: Mapping[str, Size], *, measured: bool) -> None:
        self.one = one
        self.sizes = sizes
        self.took = f" (it took {one.seconds:.1f} s)" if measured else ""
        self.locks = _find_strongest((*one.held, *one.locks))
        self.worked: list[str] = []  # the large tables that were worked on

    def judge(self) -> list[Warned]:
        return [*self._judge_writing(), *self._judge_scans(), *self._judge_rows()]

    def _judge_writing(self) -> Iterable[Warned]:
        by_table: dict[str, list[Written]] = {}
        for one in self.one.written:
            by_table.setdefault(one.of, []).append(one)
        for table, written in by_table.items():
            lock = self.locks.get(table)
            if not (severity := self._weigh(table)):
                continue
            if any(one.what == "emptied" for one in written):
                continue
            rewritten = any(one.what == "rewritten" for one in written)
            self.worked.append(table)
            if lock is None or lock.mode not in STOPS_WRITES:
                continue
            indexes = [one.relation for one in written if one.kind == "index"]
            what = "the table is rewritten" if rewritten else f"{_list(indexes)} is built"
            room = " It needs that much free disk once more." if rewritten else ""
            yield self._warn(
                severity, table, f"{self._hold(lock)} while {what}{self.took}: {lock.blocks}.{room}"
            )

    def _judge_scans(self) -> Iterable[Warned]:
        for table in dict.fromkeys(one.of for one in self.one.scans):
            lock = self.locks.get(table)
            severity = self._weigh(table)
            if severity and table not in self.worked:
                self.worked.append(table)
                if lock and lock.mode in STOPS_WRITES:
                    sentence = f"{self._hold(lock)} while every row is read{self.took}: {lock.blocks}."
                    yield self._warn(severity, table, sentence)
                elif lock and lock.mode == "ROW EXCLUSIVE":
                    sentence = (
                        f"Every row of {self._name(table)} is read, as no index serves{self.took}; rows "
                        "that it changes stay locked until the commit. Do it in batches, as a back-fill."
                    )
                    yield self._warn("warning", table, sentence)

    def _judge_rows(self) -> Iterable[Warned]:
        for one in self.one.rows:
            changed = one.updated + one.deleted
            if changed >= LARGE_ROWS and one.of not in self.worked:
                self.worked.append(one.of)
                sentence = (
                    f"{changed:,} rows of {self._name(one.of)} are changed at once{self.took} and stay "
                    "locked until the commit. Do it in batches, as a back-fill."
                )
                yield self._warn("warning", one.of, sentence)

    def warn_of_held(self, lock: Lock, later: Sequence["_Judge"]) -> Warned:
        """Return the warning of a lock that was taken before this statement and lasts through `later`."""
        tables = list(dict.fromkeys(table for one in later for table in one.worked))
        lines = ", ".join(str(one.one.line) for one in later)
        return self._warn(
            "warning",
            lock.of,
            f"{self._hold(lock)} since an earlier statement while {_list(tables)} is worked on "
            f"(line {lines}): {lock.blocks} there as long. Put what takes it into a file of its own.",
        )

    def _weigh(self, table: str) -> Severity | None:
        size = self.sizes.get(table)
        if size is None:
            return None
        if size.bytes >= HUGE_BYTES or (size.rows or 0) >= HUGE_ROWS:
            return "error"
        return "warning" if size.bytes >= LARGE_BYTES or (size.rows or 0) >= LARGE_ROWS else None

    def _hold(self, lock: Lock) -> str:
        return f"{lock.mode} on {self._name(lock.of)} is held"

    def _name(self, table: str) -> str:
        size = self.sizes.get(table)
        if size is None:
            return table
        rows = "" if size.rows is None else f", {show_rows(size.rows)} rows"
        return f"{table} ({show_bytes(size.bytes)}{rows})"

    def _warn(self, severity: Severity, table: str, sentence: str) -> Warned:
        return Warned(severity, self.one.line, table, sentence)


def _judge_held(
    judges: Sequence[_Judge], found: Sequence[Warned], sizes: Mapping[str, Size]
) -> Iterable[Warned]:
    """Name the locks of earlier statements that last while a later one works on a large table."""
    told = {(one.line, one.table) for one in found}
    met: dict[str, tuple[Lock, list[_Judge]]] = {}
    for judge in judges:
        for table, lock in _find_strongest(judge.one.held).items():
            size = sizes.get(table)
            if judge.worked and size and size.bytes and (judge.one.line, table) not in told:
                met.setdefault(table, (lock, []))[1].append(judge)
    for lock, later in met.values():
        yield later[0].warn_of_held(lock, later)


def _find_strongest(locks: Iterable[Lock]) -> dict[str, Lock]:
    """Return, by whole table, the strongest lock on it or a partition of it; locks on its indexes are not."""
    found: dict[str, Lock] = {}
    for one in sorted(locks, key=lambda lock: ORDER.index(lock.mode)):
        if one.kind != "index":
            found[one.of] = one
    return found


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def show_bytes(number: int) -> str:
    """Return bytes for people: 212 GB."""
    value, unit = float(number), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if value >= 10 or unit == 0 else f"{value:.1f} {UNITS[unit]}"


def show_rows(number: int) -> str:
    """Return a number of rows for people: 1.1e9, as it is an estimate."""
    return f"{number:,}" if number < 1_000_000 else f"{number:.1e}".replace("e+0", "e").replace("e+", "e")
