SELECT former_hashes, barred FROM core.transactions LIMIT 0;
SELECT 1 / (pg_get_functiondef(to_regprocedure(
    'core.take_nonces(text, text[], bigint[], text[], bytea[], timestamptz, boolean)'
)) LIKE '%NOT t.barred%')::integer;
