-- A webhook may be rotated again before the secret before the last one has expired: that one goes on signing.
ALTER TABLE settlement.webhook_subscriptions
    -- Those before previous_secret, the oldest first, and until when each of them signs.
    ADD COLUMN older_secrets text[] NOT NULL DEFAULT '{}',
    ADD COLUMN older_secrets_expire_at timestamptz[] NOT NULL DEFAULT '{}',
    ADD CHECK (cardinality(older_secrets) = cardinality(older_secrets_expire_at));
