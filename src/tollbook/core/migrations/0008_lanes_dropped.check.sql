SELECT 1 / indisvalid::integer FROM pg_index WHERE indexrelid = 'core.transactions_dropped'::regclass;
