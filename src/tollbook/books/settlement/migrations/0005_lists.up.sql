-- commands.page, by what the API lists them by. No times in them: equal values take little room, and where a
-- value is frequent, the newest first are found by settlement_commands_received_at.
CREATE INDEX settlement_commands_payee ON settlement.settlement_commands (payee) WHERE payee IS NOT NULL;
CREATE INDEX settlement_commands_account_ref ON settlement.settlement_commands (account_ref) WHERE account_ref <> '';
CREATE INDEX settlement_commands_asset_symbol ON settlement.settlement_commands (asset_symbol)
    WHERE asset_symbol IS NOT NULL;
