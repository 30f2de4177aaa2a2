SELECT counted FROM settlement.settlement_commands LIMIT 0;
SELECT 1 / count(*)::integer AS held FROM pg_trigger
WHERE tgrelid = 'settlement.settlement_commands'::regclass AND tgname = 'limits_are_given_back';
