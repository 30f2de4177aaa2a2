SELECT older_secrets, older_secrets_expire_at FROM settlement.webhook_subscriptions LIMIT 0;
