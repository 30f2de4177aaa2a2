"""The migration engine: numbered SQL files, applied one proven transaction at a time.

    from tollbook.migrate import Folder, apply
    apply("postgresql:///app", [Folder("app", Path("migrations"))])

Backups: `tollbook.migrate.backup.backup` and `tollbook.migrate.restore.restore`.
One SQL file: `tollbook.migrate.bundle.bundle`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tollbook.migrate.application import ApplyResult as ApplyResult
    from tollbook.migrate.application import Step as Step
    from tollbook.migrate.application import apply as apply
    from tollbook.migrate.errors import MigrateError as MigrateError
    from tollbook.migrate.events import Event as Event
    from tollbook.migrate.files import Folder as Folder
    from tollbook.migrate.inspection import Status as Status
    from tollbook.migrate.inspection import Verification as Verification
    from tollbook.migrate.inspection import status as status
    from tollbook.migrate.inspection import verify as verify
    from tollbook.migrate.rehearsal import Plan as Plan
    from tollbook.migrate.rehearsal import plan as plan
    from tollbook.migrate.reversal import revert as revert
    from tollbook.migrate.seeds import Seeding as Seeding
    from tollbook.migrate.seeds import seed as seed
    from tollbook.migrate.traffic import Traffic as Traffic

# Loaded when first asked for: driver and grammar take a fifth of a second that `--help` need not wait.
_HOMES = {
    "ApplyResult": "application",
    "Step": "application",
    "apply": "application",
    "MigrateError": "errors",
    "Event": "events",
    "Folder": "files",
    "Status": "inspection",
    "Verification": "inspection",
    "status": "inspection",
    "verify": "inspection",
    "Plan": "rehearsal",
    "plan": "rehearsal",
    "revert": "reversal",
    "Seeding": "seeds",
    "seed": "seeds",
    "Traffic": "traffic",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
