-- What the worker knows and others ask for, and what it counts apart.

-- The limits that the worker has on each network that it serves, by asset ('' the network's own coin), in
-- minor units: whoever tries a command again elsewhere keeps to them.
CREATE TABLE settlement.network_limits (
    network text PRIMARY KEY,
    told_at timestamptz NOT NULL,
    limits jsonb NOT NULL CHECK (jsonb_typeof(limits) = 'object')
);

-- How often the token's own simulation reverted; to have waited for money is no reason to refuse it sooner.
ALTER TABLE settlement.settlement_commands ADD COLUMN reverts smallint NOT NULL DEFAULT 0 CHECK (reverts >= 0);
