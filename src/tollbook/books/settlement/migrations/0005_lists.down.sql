DROP INDEX settlement.settlement_commands_payee, settlement.settlement_commands_account_ref,
           settlement.settlement_commands_asset_symbol;
