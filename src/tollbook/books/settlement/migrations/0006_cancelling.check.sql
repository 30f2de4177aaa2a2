SELECT cancelling FROM settlement.settlement_commands LIMIT 0;
SELECT 1 / (pg_get_functiondef('settlement.check_step()'::regprocedure) LIKE '%executed cancelled%')::integer;
