-- Only reads: a check also runs on a database with money in it.
SELECT difference_id, kind, status, note FROM payments.x402_differences LIMIT 1;
SELECT network, position FROM payments.x402_cursors LIMIT 1;
SELECT refund_id, status, tx_hash FROM payments.x402_refunds LIMIT 1;
SELECT refund_asked, refunded_amount FROM payments.x402_payments LIMIT 1;
SELECT refunded_amount_usdc FROM payments.v_x402_stats_24h LIMIT 1;
