-- Webhooks: who wants to be told of which facts, what each is still to be told, and every attempt to tell it.
-- They serve every book; the schema is the reference's, where the settlement book then makes its own tables.

CREATE SCHEMA settlement;

-- The first seven columns are the reference's. `secret` is sealed (AES-256-GCM, base64), never in the clear.
CREATE TABLE settlement.webhook_subscriptions (
    subscription_id varchar(128) PRIMARY KEY,
    url varchar(512) NOT NULL,
    secret varchar(256) NOT NULL,
    event_types text NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    description varchar(512),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- It is told of every fact whose transaction this snapshot does not see: of none before, of all after.
    began_in pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    began_epoch integer NOT NULL DEFAULT 1,
    -- Until it expires, the secret before signs beside the new one.
    previous_secret varchar(256),
    previous_secret_expires_at timestamptz,
    failing_since timestamptz,
    paused_until timestamptz,
    disabled_at timestamptz,
    disabled_reason text,
    CHECK ((previous_secret IS NULL) = (previous_secret_expires_at IS NULL)),
    CHECK (disabled_at IS NULL OR NOT enabled)
);

-- One fact to one subscription, once; a replay is a further row. A test ping has no place in the journal.
CREATE TABLE settlement.webhook_deliveries (
    delivery_id bigint,
    created_at timestamptz NOT NULL,
    recorded_at timestamptz,
    retrying_since timestamptz,
    next_attempt_at timestamptz,
    ended_at timestamptz,
    transaction_id xid8,
    entry_id bigint,
    replay_id bigint NOT NULL DEFAULT 0,
    epoch integer,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    tries integer NOT NULL DEFAULT 0 CHECK (tries BETWEEN 0 AND attempts),
    subscription_id varchar(128) NOT NULL,
    subject text NOT NULL,
    message_id text NOT NULL,
    event_type text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    PRIMARY KEY (subscription_id, delivery_id),
    UNIQUE (subscription_id, epoch, entry_id, replay_id),
    CHECK ((status = 'pending') = (ended_at IS NULL)),
    CHECK ((epoch IS NULL) = (entry_id IS NULL)),
    CHECK ((epoch IS NULL) = (transaction_id IS NULL)),
    CHECK ((epoch IS NULL) = (recorded_at IS NULL))
);
-- What a queue's next one is.
CREATE INDEX webhook_deliveries_pending
    ON settlement.webhook_deliveries (subscription_id, subject, epoch, entry_id, delivery_id)
    WHERE status = 'pending';
CREATE INDEX webhook_deliveries_created_at ON settlement.webhook_deliveries USING brin (created_at);

-- What a subscription is still to be told about one subject, in order; the row goes with its last delivery.
-- While a process works on it, next_attempt_at is the end of its lease.
CREATE TABLE settlement.webhook_queues (
    subscription_id varchar(128),
    subject text,
    next_attempt_at timestamptz NOT NULL,
    claim_id bigint,
    PRIMARY KEY (subscription_id, subject)
);
CREATE INDEX webhook_queues_due ON settlement.webhook_queues (subscription_id, next_attempt_at);

CREATE TABLE settlement.webhook_attempts (
    delivery_id bigint,
    at timestamptz,
    attempt integer CHECK (attempt > 0),
    latency_ms integer NOT NULL CHECK (latency_ms >= 0),
    status_code smallint,
    subscription_id varchar(128),
    error text,
    answer text,
    PRIMARY KEY (subscription_id, delivery_id, attempt, at)
) PARTITION BY RANGE (at);

SELECT core.ensure_partitions('settlement.webhook_attempts', '7 days', 12);
