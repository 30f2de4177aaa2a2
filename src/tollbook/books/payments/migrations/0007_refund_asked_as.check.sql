SELECT asked_as FROM payments.x402_refunds LIMIT 0;
