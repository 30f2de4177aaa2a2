"""What every test stands on: one throw-away PostgreSQL a session, a migrated database a test."""

import gc
import os
import tempfile
from pathlib import Path

import certifi
import pytest
from hypothesis import settings

from fixtures.walks import WHOLE

# Thousands of small files are made and deleted, which some file systems on disks take long for.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK):
    os.environ.setdefault("TMPDIR", str(MEMORY))

# Each HTTP client reads all the authorities it is told of: 30 ms for the world's, of which no test meets one.
_authority = tempfile.NamedTemporaryFile("w", suffix=".pem")  # noqa: SIM115 - as long as the session
_authority.write(
    Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")[0]
    + "-----END CERTIFICATE-----\n"
)
_authority.flush()
os.environ["SSL_CERT_FILE"] = _authority.name

# No example may take too long by chance, and each run tries the same ones: others where all is asked for.
settings.register_profile("whole", settings.get_profile("ci"), derandomize=False)
settings.load_profile("whole" if WHOLE else "ci")

pytest_plugins = [
    "fixtures.backups",
    "fixtures.chain",
    "fixtures.database",
    "fixtures.facilitator",
    "fixtures.failover",
    "fixtures.lanes",
    "fixtures.machines",
    "fixtures.paid_shop",
    "fixtures.planted",
    "fixtures.refunding",
    "fixtures.schemes",
    "fixtures.solana",
    "fixtures.solana_desk",
    "fixtures.solana_shop",
    "fixtures.solana_walk",
    "fixtures.stores",
    "fixtures.webhooks",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long walks first: at the end nobody could take them over from the worker that has them."""
    items.sort(key=lambda item: item.path.parent.name not in ("faults", "journeys"))


def pytest_collection_finish() -> None:
    """What was imported stays to the end: the garbage collector need not look at it each time."""
    gc.collect()
    gc.freeze()
