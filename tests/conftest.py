"""What every test stands on: one throw-away PostgreSQL a session, a migrated database a test."""

import os
from pathlib import Path

import pytest

# Thousands of small files are made and deleted, which some file systems on disks take long for.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK):
    os.environ.setdefault("TMPDIR", str(MEMORY))

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
