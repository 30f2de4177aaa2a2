SELECT 1 / count(*)::integer AS held FROM pg_constraint
WHERE conrelid = 'settlement.settlement_commands'::regclass AND conname = 'times_can_be_read';
