-- The payments book: what was paid, which tokens it bought, every request that was answered, and the hours.
--
-- Every fact of x402_payments and x402_tokens is also appended to core.journal by whoever changes them.
-- Column order is chosen for size: the wide and fixed ones first.

CREATE SCHEMA payments;

-- One row a payment. Its identity is (network, asset, payer, nonce), or for money that was sent beforehand
-- (network, transaction). A failed payment moved nothing and ends there: only it leaves its identity free.
CREATE TABLE payments.x402_payments (
    payment_id bigint PRIMARY KEY,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    valid_before timestamptz,
    verified_at timestamptz,
    settled_at timestamptz,
    expires_at timestamptz,
    refunded_at timestamptz,
    -- The transaction that last changed what was earned: update_x402_analytics() goes by it.
    settled_in bigint,
    block_number bigint CHECK (block_number >= 0),
    requests_allocated integer NOT NULL CHECK (requests_allocated > 0),
    requests_used integer NOT NULL DEFAULT 0,
    confirmations integer CHECK (confirmations >= 0),
    decimals smallint NOT NULL CHECK (decimals BETWEEN 0 AND 36),
    amount numeric(78, 0) NOT NULL CHECK (amount > 0),
    -- A product, because a quotient of numerics is rounded.
    amount_usdc numeric GENERATED ALWAYS AS (trim_scale(amount * power(10::numeric, -decimals))) STORED,
    lifetime interval NOT NULL CHECK (lifetime > interval '0'),
    status text NOT NULL CHECK (status IN ('pending', 'verified', 'used', 'expired', 'failed')),
    settlement text NOT NULL CHECK (settlement IN ('pending', 'settled', 'failed', 'unknown', 'refunded')),
    network text NOT NULL CHECK (network LIKE '___%:_%'),
    chain text NOT NULL CHECK (chain <> ''),
    asset text NOT NULL CHECK (asset <> ''),
    scheme text NOT NULL CHECK (scheme <> ''),
    from_address text NOT NULL CHECK (from_address <> ''),
    to_address text NOT NULL CHECK (to_address <> ''),
    endpoint text NOT NULL CHECK (endpoint <> ''),
    nonce text,
    tx_hash text,
    settlement_error text,

    CONSTRAINT quota_is_kept CHECK (requests_used BETWEEN 0 AND requests_allocated),
    CONSTRAINT has_an_identity CHECK (nonce IS NOT NULL OR tx_hash IS NOT NULL),
    -- One spelling each, or the same payment would count twice. Other chains' addresses know upper case.
    -- Lengths and one comparison, no patterns: checks run again whenever a request is taken from the quota.
    CONSTRAINT evm_spelling CHECK (
        network NOT LIKE 'eip155:%'
        OR (octet_length(asset) = 42 AND octet_length(from_address) = 42 AND octet_length(to_address) = 42
            AND coalesce(octet_length(tx_hash) = 66, true)
            AND (asset || from_address || to_address || coalesce(nonce, '') || coalesce(tx_hash, ''))
              = lower((asset || from_address || to_address || coalesce(nonce, '') || coalesce(tx_hash, ''))
                      COLLATE "C"))
    ),
    CONSTRAINT status_fits_settlement CHECK (
        CASE status
            WHEN 'pending' THEN settlement IN ('pending', 'unknown')
            WHEN 'failed' THEN settlement = 'failed'
            WHEN 'expired' THEN settlement IN ('settled', 'refunded')
            ELSE settlement = 'settled'
        END
    ),
    CONSTRAINT status_fits_quota CHECK (
        CASE status
            WHEN 'used' THEN requests_used = requests_allocated
            WHEN 'verified' THEN requests_used < requests_allocated
            WHEN 'expired' THEN true
            ELSE requests_used = 0
        END
    ),
    CONSTRAINT status_fits_times CHECK (
        CASE WHEN status IN ('pending', 'failed')
            THEN num_nonnulls(verified_at, settled_at, expires_at, settled_in) = 0
            ELSE num_nulls(verified_at, settled_at, expires_at, settled_in) = 0 AND expires_at > verified_at
        END
    ),
    CONSTRAINT refunds_have_a_time CHECK ((settlement = 'refunded') = (refunded_at IS NOT NULL)),
    CONSTRAINT failures_say_why CHECK (settlement NOT IN ('failed', 'unknown') OR settlement_error IS NOT NULL)
) WITH (fillfactor = 80);  -- room on the page: taking a request from the quota then touches no index

-- One row a secret handed out; the secret itself is nowhere.
CREATE TABLE payments.x402_tokens (
    token_id bigint PRIMARY KEY,
    payment_id bigint NOT NULL REFERENCES payments.x402_payments,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL CHECK (expires_at > issued_at),
    revoked_at timestamptz,
    token_hash bytea NOT NULL CHECK (length(token_hash) = 32)
);

-- One row an answered request, only ever added. No key and no reference: at this rate each costs more than
-- the row. transaction_id lets update_x402_analytics() find rows that were committed late.
CREATE TABLE payments.x402_usage (
    payment_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    transaction_id bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    response_time_ms integer NOT NULL,
    endpoint_id smallint NOT NULL,
    status_code smallint NOT NULL
) PARTITION BY RANGE (created_at);

-- One row an hour, network, asset and endpoint. Its payments are those settled in that hour, whatever became
-- of them since; its requests are those answered in that hour.
-- The row at -infinity is the watermark: its network is the database cluster's identifier, and every
-- transaction before its `watermark` has been counted.
CREATE TABLE payments.x402_analytics (
    hour_bucket timestamptz NOT NULL,
    network text NOT NULL,
    asset text NOT NULL,
    endpoint text NOT NULL,
    chain text NOT NULL DEFAULT '',
    total_payments bigint NOT NULL DEFAULT 0,
    refunded_payments bigint NOT NULL DEFAULT 0,
    unique_payers bigint NOT NULL DEFAULT 0,
    total_amount numeric NOT NULL DEFAULT 0,
    refunded_amount numeric NOT NULL DEFAULT 0,
    total_amount_usdc numeric NOT NULL DEFAULT 0,
    average_payment_usdc numeric GENERATED ALWAYS AS (total_amount_usdc / nullif(total_payments, 0)) STORED,
    total_requests bigint NOT NULL DEFAULT 0,
    success_count bigint NOT NULL DEFAULT 0,
    error_count bigint NOT NULL DEFAULT 0,
    response_time_ms_total bigint NOT NULL DEFAULT 0,
    -- How many requests took up to 10, 25, 50, 100, 250, 500, 1000, 2500, 5000 ms, and longer.
    response_time_counts bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0,0,0,0,0}',
    watermark bigint,
    PRIMARY KEY (hour_bucket, network, asset, endpoint)
);

SELECT core.ensure_partitions('payments.x402_usage', interval '1 week', 8);

-- payments.reserve: one authorization counts once. payments.page of a payer does not need it.
CREATE UNIQUE INDEX idx_x402_payments_nonce ON payments.x402_payments (network, asset, from_address, nonce)
    WHERE nonce IS NOT NULL AND status <> 'failed';
-- payments.reserve: one payer's transfers in one transaction count once. payments.find: look one up. A nonce
-- is an identity of its own: facilitators may settle several authorizations in one transaction.
CREATE UNIQUE INDEX idx_x402_payments_tx_hash
    ON payments.x402_payments (network, tx_hash, from_address, coalesce(nonce, ''))
    WHERE tx_hash IS NOT NULL AND status <> 'failed';
-- payments.page(from_address=…)
CREATE INDEX idx_x402_payments_from_address ON payments.x402_payments (from_address, payment_id DESC);
-- payments.page(status=…)
CREATE INDEX idx_x402_payments_status ON payments.x402_payments (status, payment_id DESC);
-- v_x402_active_payments: those that still buy something.
CREATE INDEX idx_x402_payments_active ON payments.x402_payments (expires_at) WHERE status = 'verified';
-- cleanup_expired_x402_payments(): those whose time is over, oldest first.
CREATE INDEX idx_x402_payments_expiry ON payments.x402_payments (expires_at) WHERE status IN ('verified', 'used');
-- cleanup_expired_x402_payments(): those that began to settle and of which nothing more was heard.
CREATE INDEX idx_x402_payments_unheard ON payments.x402_payments (valid_before)
    WHERE status = 'pending' AND settlement = 'pending';
-- v_x402_stats_24h, update_x402_analytics(): those settled in a time.
CREATE INDEX idx_x402_payments_settled_at ON payments.x402_payments (settled_at) WHERE settled_at IS NOT NULL;
-- update_x402_analytics(): those settled or refunded since the watermark.
CREATE INDEX idx_x402_payments_settled_in ON payments.x402_payments (settled_in) WHERE settled_in IS NOT NULL;
-- usage.Meter.admit: whose secret is this?
CREATE UNIQUE INDEX idx_x402_tokens_token_hash ON payments.x402_tokens (token_hash);
-- tokens.rotate, tokens.page(payment_id=…)
CREATE INDEX idx_x402_tokens_payment ON payments.x402_tokens (payment_id, token_id DESC);
-- v_x402_endpoint_stats: a time's rows. update_x402_analytics(): the rows since the watermark. Rows arrive in
-- the order of both columns, so a few bytes for every 32 pages are enough.
CREATE INDEX idx_x402_usage_time ON payments.x402_usage USING brin (created_at, transaction_id)
    WITH (pages_per_range = 32, autosummarize = on);
-- usage.page: one payment's requests.
CREATE INDEX idx_x402_usage_payment ON payments.x402_usage (payment_id);

-- The payments that still buy requests.
CREATE VIEW payments.v_x402_active_payments AS
SELECT payment_id, tx_hash, network, chain, asset, amount, amount_usdc, from_address, endpoint,
       requests_allocated, requests_used, requests_allocated - requests_used AS requests_remaining,
       created_at, expires_at
FROM payments.x402_payments
WHERE status = 'verified' AND expires_at > now();

-- What each chain brought in 24 hours: all that was settled, also what is used up or expired by now. Refunds
-- are told apart, not left out.
CREATE VIEW payments.v_x402_stats_24h AS
SELECT chain, network,
       count(*) AS total_payments,
       sum(amount_usdc) AS total_amount_usdc,
       coalesce(sum(amount_usdc) FILTER (WHERE settlement = 'refunded'), 0) AS refunded_amount_usdc,
       sum(requests_allocated) AS total_requests_allocated,
       sum(requests_used) AS total_requests_used,
       count(DISTINCT from_address) AS unique_payers,
       round(avg(amount_usdc), 18) AS average_payment_usdc
FROM payments.x402_payments
WHERE settled_at >= now() - interval '24 hours'
GROUP BY chain, network;

-- The hundred who paid most, over all time, refunds taken off.
CREATE VIEW payments.v_x402_top_payers AS
SELECT from_address,
       count(*) AS payment_count,
       coalesce(sum(amount_usdc) FILTER (WHERE settlement = 'settled'), 0) AS total_spent_usdc,
       sum(requests_used) AS total_requests_used,
       max(settled_at) AS last_payment_at
FROM payments.x402_payments
WHERE settled_at IS NOT NULL
GROUP BY from_address
ORDER BY total_spent_usdc DESC, from_address
LIMIT 100;

-- The endpoints' last 24 hours, up to this instant. Payments are counted together first: a payer may hold
-- several, and each brings many requests.
CREATE VIEW payments.v_x402_endpoint_stats AS
WITH each_payment AS (
    SELECT endpoint_id, payment_id,
           count(*) AS requests,
           sum(response_time_ms) AS response_time_ms,
           count(*) FILTER (WHERE status_code BETWEEN 200 AND 299) AS successes,
           count(*) FILTER (WHERE status_code >= 400) AS errors
    FROM payments.x402_usage
    WHERE created_at >= now() - interval '24 hours'
    GROUP BY endpoint_id, payment_id
)
SELECT coalesce(labels.label, '(other)') AS endpoint,
       sum(requests)::bigint AS request_count,
       round(sum(response_time_ms) / sum(requests), 3) AS avg_response_time_ms,
       count(DISTINCT paid.from_address) AS unique_payers,
       sum(successes)::bigint AS success_count,
       sum(errors)::bigint AS error_count
FROM each_payment
JOIN payments.x402_payments AS paid USING (payment_id)
LEFT JOIN core.labels AS labels
    ON labels.kind = 'payments.endpoint' AND labels.label_id = each_payment.endpoint_id
GROUP BY 1
ORDER BY request_count DESC, endpoint;

-- Expire what is past its time: at most 10,000 payments a call, so call again while it gives that many.
-- Deletes nothing. Safe to run twice at once: each takes what the other has not.
-- Those that began to settle and were never heard of again become unknown, not failed: money may have moved.
CREATE FUNCTION payments.cleanup_expired_x402_payments() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    expired_count integer;
BEGIN
    WITH due AS MATERIALIZED (
        SELECT payment_id FROM payments.x402_payments
        WHERE status IN ('verified', 'used') AND expires_at <= now()
        ORDER BY expires_at LIMIT 10000
        FOR NO KEY UPDATE SKIP LOCKED
    ), expired AS (
        UPDATE payments.x402_payments AS p SET status = 'expired', updated_at = now()
        FROM due WHERE p.payment_id = due.payment_id AND p.status IN ('verified', 'used')
        RETURNING p.*
    ), told AS (
        INSERT INTO core.journal (book, kind, subject, network, asset, amount, from_party, to_party, details)
        SELECT 'payments', 'payment.expired', payment_id::text, network, asset, amount, from_address, to_address,
               jsonb_build_object('requests_allocated', requests_allocated, 'requests_used', requests_used)
        FROM expired
    )
    SELECT count(*) INTO expired_count FROM expired;

    WITH due AS MATERIALIZED (
        SELECT payment_id FROM payments.x402_payments
        WHERE status = 'pending' AND settlement = 'pending' AND valid_before <= now()
        ORDER BY valid_before LIMIT 10000
        FOR NO KEY UPDATE SKIP LOCKED
    ), unheard AS (
        UPDATE payments.x402_payments AS p
        SET settlement = 'unknown', settlement_error = 'nothing was heard before the authorization ran out',
            updated_at = now()
        FROM due
        WHERE p.payment_id = due.payment_id AND p.status = 'pending' AND p.settlement = 'pending'
        RETURNING p.*
    )
    INSERT INTO core.journal (book, kind, subject, network, asset, amount, from_party, to_party, details)
    SELECT 'payments', 'payment.unknown', payment_id::text, network, asset, amount, from_address, to_address,
           jsonb_build_object('reason', settlement_error)
    FROM unheard;

    RETURN expired_count;
END
$$;

-- Bring x402_analytics up to date; how many hours were counted anew.
--
-- Exact, because an hour is always counted whole, and counted again whenever a row of it may have been
-- missed: a row not visible to this run belongs to a transaction that is not before this run's horizon (the
-- oldest transaction still running), and the next run looks at every row from that horizon on. The watermark
-- holds for one cluster's transaction numbers: in a restored copy all is counted anew.
-- Payments and requests are counted apart, so that an old hour's requests survive their rows.
CREATE FUNCTION payments.update_x402_analytics() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    cluster text := (SELECT system_identifier::text FROM pg_control_system());
    since bigint;
    horizon bigint;
    hour timestamptz;
    hours integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('payments.update_x402_analytics', 0));
    horizon := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    since := coalesce(
        (SELECT watermark FROM payments.x402_analytics WHERE hour_bucket = '-infinity' AND network = cluster), 0);
    DELETE FROM payments.x402_analytics WHERE hour_bucket = '-infinity';
    INSERT INTO payments.x402_analytics (hour_bucket, network, asset, endpoint, watermark)
    VALUES ('-infinity', cluster, '', '', horizon);

    FOR hour IN
        SELECT DISTINCT date_trunc('hour', settled_at, 'UTC') FROM payments.x402_payments
        WHERE settled_in >= since
    LOOP
        INSERT INTO payments.x402_analytics AS a (
            hour_bucket, network, asset, endpoint, chain, total_payments, refunded_payments, unique_payers,
            total_amount, refunded_amount, total_amount_usdc)
        SELECT hour, network, asset, endpoint, min(chain), count(*),
               count(*) FILTER (WHERE settlement = 'refunded'), count(DISTINCT from_address),
               sum(amount), coalesce(sum(amount) FILTER (WHERE settlement = 'refunded'), 0), sum(amount_usdc)
        FROM payments.x402_payments
        WHERE settled_at >= hour AND settled_at < hour + interval '1 hour'
        GROUP BY network, asset, endpoint
        ON CONFLICT (hour_bucket, network, asset, endpoint) DO UPDATE
        SET chain = excluded.chain, total_payments = excluded.total_payments,
            refunded_payments = excluded.refunded_payments, unique_payers = excluded.unique_payers,
            total_amount = excluded.total_amount, refunded_amount = excluded.refunded_amount,
            total_amount_usdc = excluded.total_amount_usdc;
        hours := hours + 1;
    END LOOP;

    FOR hour IN
        SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM payments.x402_usage
        WHERE transaction_id >= since
    LOOP
        WITH each_payment AS (
            SELECT payment_id, endpoint_id, count(*) AS requests, sum(response_time_ms) AS response_time_ms,
                   count(*) FILTER (WHERE status_code BETWEEN 200 AND 299) AS successes,
                   count(*) FILTER (WHERE status_code >= 400) AS errors,
                   count(*) FILTER (WHERE response_time_ms <= 10) AS t10,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 11 AND 25) AS t25,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 26 AND 50) AS t50,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 51 AND 100) AS t100,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 101 AND 250) AS t250,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 251 AND 500) AS t500,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 501 AND 1000) AS t1000,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 1001 AND 2500) AS t2500,
                   count(*) FILTER (WHERE response_time_ms BETWEEN 2501 AND 5000) AS t5000,
                   count(*) FILTER (WHERE response_time_ms > 5000) AS longer
            FROM payments.x402_usage
            WHERE created_at >= hour AND created_at < hour + interval '1 hour'
            GROUP BY payment_id, endpoint_id
        )
        INSERT INTO payments.x402_analytics AS a (
            hour_bucket, network, asset, endpoint, chain, total_requests, success_count, error_count,
            response_time_ms_total, response_time_counts)
        SELECT hour, paid.network, paid.asset, coalesce(labels.label, '(other)'), min(paid.chain),
               sum(requests), sum(successes), sum(errors), sum(response_time_ms),
               ARRAY[sum(t10), sum(t25), sum(t50), sum(t100), sum(t250), sum(t500), sum(t1000), sum(t2500),
                     sum(t5000), sum(longer)]::bigint[]
        FROM each_payment
        JOIN payments.x402_payments AS paid USING (payment_id)
        LEFT JOIN core.labels AS labels
            ON labels.kind = 'payments.endpoint' AND labels.label_id = each_payment.endpoint_id
        GROUP BY paid.network, paid.asset, coalesce(labels.label, '(other)')
        ON CONFLICT (hour_bucket, network, asset, endpoint) DO UPDATE
        SET chain = excluded.chain, total_requests = excluded.total_requests,
            success_count = excluded.success_count, error_count = excluded.error_count,
            response_time_ms_total = excluded.response_time_ms_total,
            response_time_counts = excluded.response_time_counts;
        hours := hours + 1;
    END LOOP;

    RETURN hours;
END
$$;
