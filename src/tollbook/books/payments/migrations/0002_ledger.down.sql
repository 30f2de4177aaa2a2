ALTER TABLE payments.x402_payments DROP CONSTRAINT x402_payments_amount_check;
ALTER TABLE payments.x402_payments ADD CONSTRAINT x402_payments_amount_check CHECK (amount > 0);
DROP TABLE payments.x402_answers;
DROP TABLE payments.x402_facilitators;
DROP TABLE payments.x402_settlements;
