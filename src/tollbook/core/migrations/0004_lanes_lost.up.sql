-- Lanes on a chain that was rolled back deeper than it is waited for, or reset altogether.

-- lost: it was final, and now its block is of the chain no more and no node knows it. Its nonce goes to
-- another; when that one is final, it is dropped. Until then somebody may still hand it to a node again.
ALTER TABLE core.transactions
    DROP CONSTRAINT transactions_status_check,
    ADD CONSTRAINT transactions_status_check
        CHECK (status IN ('reserved', 'signed', 'sent', 'mined', 'lost', 'dropped')),
    -- The stranger's transaction that was seen under its nonce: later the node may have forgotten where.
    ADD COLUMN holder_hash text CHECK (holder_hash ~ '^0x[0-9a-f]{64}$');

DROP INDEX core.transactions_nonce;
CREATE UNIQUE INDEX transactions_nonce ON core.transactions (network, sender, nonce)
    WHERE status NOT IN ('lost', 'dropped') AND nonce IS NOT NULL;

-- Which chain it is, by its first block; what was mined before `reset_at` was mined on another one.
CREATE TABLE core.lane_chains (
    network text PRIMARY KEY,
    genesis_hash text NOT NULL CHECK (genesis_hash ~ '^0x[0-9a-f]{64}$'),
    reset_at timestamptz
);
