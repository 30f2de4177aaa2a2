-- Who sells for a settlement, answers that broke off, where money comes in, and a function stated whole.

-- One settlement buys once: through the paywall, or through the SDK's middleware ("sdk", and once its answer
-- was given "sold"), or for who claims its transaction.
ALTER TABLE payments.x402_settlements
    ADD COLUMN owner text NOT NULL DEFAULT 'paywall' CHECK (owner IN ('paywall', 'sdk', 'sold', 'claim'));

-- How often the answer, counted already, broke off: so often it was made again for nothing.
ALTER TABLE payments.x402_answers ADD COLUMN broken integer NOT NULL DEFAULT 0 CHECK (broken >= 0);

-- transfers._find_pairs, payments._page_lone: who is paid on a network, and in which tokens, step by step.
CREATE INDEX idx_x402_payments_place ON payments.x402_payments (network, to_address, asset);
CREATE INDEX idx_x402_settlements_place ON payments.x402_settlements (network, pay_to, asset)
    WHERE scheme <> 'batch-settlement';

-- As 0004 left it, whole: there it was made by replacing words.
CREATE OR REPLACE FUNCTION payments.update_x402_analytics() RETURNS integer LANGUAGE plpgsql AS $$
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
               count(*) FILTER (WHERE refunded_amount > 0), count(DISTINCT from_address),
               sum(amount), sum(refunded_amount), sum(amount_usdc)
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
