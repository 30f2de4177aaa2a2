SELECT network, sender, next_nonce FROM core.lanes LIMIT 0;
SELECT network, sender, nonce FROM core.lane_gaps LIMIT 0;
SELECT transaction_id, purpose, fingerprint, network, sender, nonce, status, hash, hashes, sends, gas, fee_max, tip_max,
       sealed_call, succeeded, block_number, block_hash, gas_used, fee_paid, created_at, sent_at, mined_at, confirmed_at
FROM core.transactions LIMIT 0;
-- The index that lets no nonce be used twice.
SELECT 1 / (i.indisunique AND i.indisvalid)::integer FROM pg_index i WHERE i.indexrelid = 'core.transactions_nonce'::regclass;
SELECT 1 / (count(*) = 1)::integer FROM pg_proc WHERE oid = to_regprocedure(
    'core.take_nonces(text, text[], bigint[], text[], bytea[], timestamptz, boolean)'
);
