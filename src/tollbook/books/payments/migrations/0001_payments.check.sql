-- Only reads: a check also runs on a database with money in it.
SELECT * FROM payments.v_x402_active_payments LIMIT 1;
SELECT * FROM payments.v_x402_stats_24h LIMIT 1;
SELECT * FROM payments.v_x402_top_payers LIMIT 1;
SELECT * FROM payments.v_x402_endpoint_stats LIMIT 1;
SELECT 'payments.cleanup_expired_x402_payments()'::regprocedure, 'payments.update_x402_analytics()'::regprocedure;
