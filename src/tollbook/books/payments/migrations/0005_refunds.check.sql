SELECT network, asset, sender, first, position FROM payments.x402_refund_cursors LIMIT 0;
SELECT refund_id, signed_at, sent_at, ended_at, signed_slot, last_valid_height, status, signature, sender, transaction
FROM payments.x402_solana_refunds LIMIT 0;
SELECT recalled FROM payments.x402_refunds LIMIT 0;
