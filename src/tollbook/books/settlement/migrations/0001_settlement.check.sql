SELECT command_id, workflow_id, account_ref, payer, payee, asset_symbol, amount_numeric, status, last_updated,
       received_at, validated_at, executed_at, settled_at, ended_at, expires_at, next_attempt_at, chain_id,
       transaction_id, round, attempts, decimals, amount_minor, network, asset, tx_hash, error, fingerprint
FROM settlement.settlement_commands LIMIT 0;
SELECT command_id, move_id, at, from_status, to_status, reason, tx_hash FROM settlement.command_moves LIMIT 0;
SELECT network, asset, payee, day, amount_minor FROM settlement.spending LIMIT 0;
SELECT 1 / count(*)::integer AS held FROM pg_trigger
WHERE tgrelid = 'settlement.settlement_commands'::regclass AND tgname = 'command_takes_legal_steps';
