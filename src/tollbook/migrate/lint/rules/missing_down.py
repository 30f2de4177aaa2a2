"""A migration has no way back."""

from collections.abc import Iterable

from tollbook.migrate.lint.rule import Example, Hit, Rule
from tollbook.migrate.lint.unit import File


def check_file(file: File) -> Iterable[Hit]:
    if file.migration.down is None and file.units and file.reversible:
        yield Hit(f"{file.migration.id} has no down statements: `revert` refuses to take it back.")


RULE = Rule(
    "missing-down",
    "notice",
    str(__doc__),
    "When the release is bad, the old code may not run on the new schema; then only a restored backup helps.",
    "Write the down file with the up file, and let `tollbook migrate check` prove that up, down, up leaves "
    "the same catalog. Where there is no way back, say so in an allowance.",
    Example("CREATE TABLE parcels (id bigint PRIMARY KEY);"),
    check_file=check_file,
    down=False,
)
