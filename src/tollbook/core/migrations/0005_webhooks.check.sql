SELECT subscription_id, url, secret, event_types, enabled, description, created_at, began_in, began_epoch,
       previous_secret, previous_secret_expires_at, failing_since, paused_until, disabled_at, disabled_reason
FROM settlement.webhook_subscriptions LIMIT 0;
SELECT delivery_id, created_at, recorded_at, retrying_since, next_attempt_at, ended_at, transaction_id, entry_id,
       replay_id, epoch, attempts, tries, subscription_id, subject, message_id, event_type, status
FROM settlement.webhook_deliveries LIMIT 0;
SELECT subscription_id, subject, next_attempt_at, claim_id FROM settlement.webhook_queues LIMIT 0;
SELECT delivery_id, at, attempt, latency_ms, status_code, subscription_id, error, answer
FROM settlement.webhook_attempts LIMIT 0;
-- The attempts have partitions for the weeks to come.
SELECT 1 / (count(*) > 12)::integer FROM pg_inherits WHERE inhparent = 'settlement.webhook_attempts'::regclass;
