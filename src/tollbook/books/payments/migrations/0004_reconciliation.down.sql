-- Refused while a payment is 'reversed' or partly refunded: the tables before know no such thing.
DO $$
DECLARE
    definition text := pg_get_functiondef('payments.update_x402_analytics()'::regprocedure);
BEGIN
    definition := replace(
        definition, 'count(*) FILTER (WHERE refunded_amount > 0)', 'count(*) FILTER (WHERE settlement = ''refunded'')');
    EXECUTE replace(
        definition, 'sum(refunded_amount)', 'coalesce(sum(amount) FILTER (WHERE settlement = ''refunded''), 0)');
END
$$;
CREATE OR REPLACE VIEW payments.v_x402_stats_24h AS
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
CREATE OR REPLACE VIEW payments.v_x402_top_payers AS
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
DROP INDEX payments.idx_x402_settlements_settled_at;
DROP TABLE payments.x402_refunds;
DROP TABLE payments.x402_cursors;
DROP TABLE payments.x402_differences;
ALTER TABLE payments.x402_payments
    DROP CONSTRAINT no_more_goes_back_than_came,
    DROP CONSTRAINT all_went_back,
    DROP CONSTRAINT x402_payments_settlement_check,
    ADD CONSTRAINT x402_payments_settlement_check
        CHECK (settlement IN ('pending', 'settled', 'failed', 'unknown', 'refunded')),
    DROP CONSTRAINT status_fits_settlement,
    ADD CONSTRAINT status_fits_settlement CHECK (
        CASE status
            WHEN 'pending' THEN settlement IN ('pending', 'unknown')
            WHEN 'failed' THEN settlement = 'failed'
            WHEN 'expired' THEN settlement IN ('settled', 'refunded')
            ELSE settlement = 'settled'
        END
    ),
    DROP COLUMN goes_back,
    DROP COLUMN refund_asked,
    DROP COLUMN refunded_amount;
