"""What every test stands on: one throw-away PostgreSQL a session, a migrated database a test."""

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
]
