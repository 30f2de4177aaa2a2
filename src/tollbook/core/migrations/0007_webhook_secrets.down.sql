ALTER TABLE settlement.webhook_subscriptions
    DROP COLUMN older_secrets,
    DROP COLUMN older_secrets_expire_at;
