SELECT 1 / (count(*) = 3)::integer FROM pg_index
WHERE indisvalid AND indexrelid IN (
    to_regclass('settlement.settlement_commands_payee'), to_regclass('settlement.settlement_commands_account_ref'),
    to_regclass('settlement.settlement_commands_asset_symbol'));
