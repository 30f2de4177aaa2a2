SELECT key_hash, tx_hash, broadcast_at FROM stores.pending_settlements LIMIT 0;
SELECT key_hash, seen_at FROM stores.settlement_keys LIMIT 0;
SELECT channel_id, channel_config, charged_cumulative_amount, signed_max_claimable, signature, highest_signed_max,
       highest_signature, balance, total_claimed, withdraw_requested_at, refund_nonce, onchain_synced_at,
       last_request_timestamp, pending_id, pending_signed_max, pending_expires_at
FROM stores.channels LIMIT 0;
SELECT channel_id, corrects, ends_at FROM stores.channel_turns LIMIT 0;
SELECT owner, channel_id, charged_cumulative_amount, balance, total_claimed, signed_max_claimable, signature, extra
FROM stores.client_channels LIMIT 0;
SELECT address, resource, expires_at, uses_left FROM stores.sign_in_grants LIMIT 0;
SELECT nonce_hash, used_at FROM stores.sign_in_nonces LIMIT 0;
SELECT identifier_hash, fingerprint, status, attempt_id, leased_until, expires_at, sealed_answer
FROM stores.payment_identifiers LIMIT 0;
