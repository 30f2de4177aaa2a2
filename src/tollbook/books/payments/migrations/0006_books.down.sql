-- The function stays: this is how it was before, too.
DROP INDEX payments.idx_x402_payments_place;
DROP INDEX payments.idx_x402_settlements_place;
ALTER TABLE payments.x402_answers DROP COLUMN broken;
ALTER TABLE payments.x402_settlements DROP COLUMN owner;
