SELECT recorded_at, entry_id, epoch, transaction_id, book, kind, subject, network, asset, amount, from_party,
       to_party, details
FROM core.journal LIMIT 0;
SELECT name, epoch, transaction_id, entry_id, advanced_at FROM core.journal_readers LIMIT 0;
SELECT kind, label_id, label FROM core.labels LIMIT 0;
SELECT key_id, name, secret_hash, scopes, created_at, expires_at, revoked_at, last_used_at FROM core.api_keys LIMIT 0;
SELECT caller, key_hash, request_hash, status, attempt_id, started_at, expires_at, response_status, sealed_response
FROM core.idempotency_keys LIMIT 0;
-- The journal has partitions, an epoch that holds, and its two guards.
SELECT 1 / (count(*) > 12)::integer FROM pg_inherits WHERE inhparent = 'core.journal'::regclass;
SELECT 1 / (count(*) > 0)::integer FROM core.journal_epochs;
SELECT 1 / (count(*) = 2)::integer FROM pg_trigger WHERE tgrelid = 'core.journal'::regclass AND NOT tgisinternal;
