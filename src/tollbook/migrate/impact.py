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
    return [warned for one in observations for warned in _Judge(one, sizes, measured=measured).judge()]


class _Judge:
    """Judges one statement."""

    def __init__(self, one: Observation, sizes: Mapping[str, Size], *, measured: bool) -> None:
        self.one = one
        self.sizes = sizes
        self.took = f" (it took {one.seconds:.1f} s)" if measured else ""
        self.locks = _find_strongest((*one.held, *one.locks))
        self.worked: list[str] = []  # the large tables that were worked on

    def judge(self) -> list[Warned]:
        found = [*self._judge_writing(), *self._judge_scans(), *self._judge_rows()]
        return [*found, *self._judge_held(found)]

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
                severity, table, f"{self._hold(lock)} while {what}{self.took}: {_wait(lock)}.{room}"
            )

    def _judge_scans(self) -> Iterable[Warned]:
        for table in dict.fromkeys(one.of for one in self.one.scans):
            lock = self.locks.get(table)
            severity = self._weigh(table)
            if severity and table not in self.worked:
                self.worked.append(table)
                if lock and lock.mode in STOPS_WRITES:
                    sentence = f"{self._hold(lock)} while every row is read{self.took}: {_wait(lock)}."
                    yield self._warn(severity, table, sentence)
                elif lock and lock.mode == "ROW EXCLUSIVE":
                    sentence = (
                        f"Every row of {self._name(table)} is read, as no index serves{self.took}; rows that it "
                        "changes stay locked until the commit. Do it in batches, as a back-fill."
                    )
                    yield self._warn("warning", table, sentence)

    def _judge_rows(self) -> Iterable[Warned]:
        for one in self.one.rows:
            changed = one.updated + one.deleted
            if changed >= LARGE_ROWS and one.of not in self.worked:
                self.worked.append(one.of)
                sentence = (
                    f"{changed:,} rows of {self._name(one.of)} are changed at once{self.took} and stay locked "
                    "until the commit. Do it in batches, as a back-fill."
                )
                yield self._warn("warning", one.of, sentence)

    def _judge_held(self, found: Sequence[Warned]) -> Iterable[Warned]:
        """Name the locks of earlier statements that last through this statement's work on a large table."""
        told = {one.table for one in found}
        for table, lock in _find_strongest(self.one.held).items():
            size = self.sizes.get(table)
            if self.worked and size and table not in told:
                sentence = (
                    f"{self._hold(lock)}, from an earlier statement, while {_list(self.worked)} is worked on"
                    f"{self.took}: {_wait(lock)} of {table}. Put the two into files of their own."
                )
                yield self._warn(self._weigh(self.worked[0]) or "warning", table, sentence)

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
        return f"{table} ({show_bytes(size.bytes)}{'' if size.rows is None else f', {show_rows(size.rows)} rows'})"

    def _warn(self, severity: Severity, table: str, sentence: str) -> Warned:
        return Warned(severity, self.one.line, table, sentence)


def _find_strongest(locks: Iterable[Lock]) -> dict[str, Lock]:
    """Return, by whole table, the strongest lock on it or a partition of it; locks on its indexes are not."""
    found: dict[str, Lock] = {}
    for one in sorted(locks, key=lambda lock: ORDER.index(lock.mode)):
        if one.kind != "index":
            found[one.of] = one
    return found


def _wait(lock: Lock) -> str:
    return f"{lock.blocks} wait"


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
