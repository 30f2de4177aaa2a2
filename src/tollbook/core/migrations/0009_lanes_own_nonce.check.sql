SELECT 1 / (pg_get_functiondef(to_regprocedure(
    'core.take_nonces(text, text[], bigint[], text[], bytea[], timestamptz, boolean)'
)) LIKE '%own_nonces%')::integer;
