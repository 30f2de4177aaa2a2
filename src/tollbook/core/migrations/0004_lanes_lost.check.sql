SELECT network, genesis_hash, reset_at FROM core.lane_chains LIMIT 0;
SELECT holder_hash FROM core.transactions LIMIT 0;
-- The index that lets no nonce be used twice knows the lost ones.
SELECT 1 / (pg_get_indexdef('core.transactions_nonce'::regclass) LIKE '%lost%')::integer;
