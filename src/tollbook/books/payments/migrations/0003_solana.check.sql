SELECT network, message_hash, signed_at, sent_at, ended_at, signed_slot, last_valid_height, landed_slot, fee_lamports,
       sends, amount, amount_moved, status, signature, fee_payer, payer, asset, pay_to, destination, reason
FROM payments.x402_solana_settlements LIMIT 0;
