ALTER TABLE payments.x402_refunds DROP COLUMN asked_as;
