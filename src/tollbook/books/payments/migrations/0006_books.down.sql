-- Who sold for a settlement is kept nowhere else: forgotten, what was sold could be claimed once more.
DO $$ BEGIN
    IF EXISTS (SELECT FROM payments.x402_settlements WHERE owner IN ('sdk', 'sold', 'claim')) THEN
        RAISE EXCEPTION 'sales through the SDK and claims are on record, which the schema before this cannot keep'
            USING HINT = 'Restore a backup from before 0006_books instead.';
    END IF;
END $$;
-- The function stays: this is how it was before, too.
DROP INDEX payments.idx_x402_payments_place;
DROP INDEX payments.idx_x402_settlements_place;
ALTER TABLE payments.x402_answers DROP COLUMN broken;
ALTER TABLE payments.x402_settlements DROP COLUMN owner;
