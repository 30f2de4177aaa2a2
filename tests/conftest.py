"""What every test stands on: one throw-away PostgreSQL a session, and a migrated database a test from a template."""

pytest_plugins = ["fixtures.chain", "fixtures.database"]
