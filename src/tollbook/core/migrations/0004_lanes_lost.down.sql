DROP TABLE core.lane_chains;
UPDATE core.transactions SET status = 'dropped' WHERE status = 'lost';
DROP INDEX core.transactions_nonce;
CREATE UNIQUE INDEX transactions_nonce ON core.transactions (network, sender, nonce)
    WHERE status <> 'dropped' AND nonce IS NOT NULL;
ALTER TABLE core.transactions
    DROP COLUMN holder_hash,
    DROP CONSTRAINT transactions_status_check,
    ADD CONSTRAINT transactions_status_check
        CHECK (status IN ('reserved', 'signed', 'sent', 'mined', 'dropped'));
