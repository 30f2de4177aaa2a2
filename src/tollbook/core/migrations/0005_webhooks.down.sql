DROP TABLE settlement.webhook_attempts, settlement.webhook_queues, settlement.webhook_deliveries,
    settlement.webhook_subscriptions;
DROP SCHEMA settlement;
DELETE FROM core.journal_readers WHERE name = 'webhooks';
