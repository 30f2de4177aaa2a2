-- Refused while a difference is called 'refund_forgotten': the table before knows no such thing.
ALTER TABLE payments.x402_differences
    DROP CONSTRAINT x402_differences_kind_check,
    ADD CONSTRAINT x402_differences_kind_check CHECK (kind IN (
        'unknown', 'paid_not_granted', 'granted_not_paid', 'double', 'foreign_transfer', 'orphaned',
        'amount_differs', 'transaction_differs', 'settlement_missing', 'token_missing', 'refund_unknown',
        'refund_not_landed'));
DROP TABLE payments.x402_solana_refunds;
ALTER TABLE payments.x402_refunds DROP COLUMN recalled;
DROP INDEX payments.idx_x402_refunds_tx_hash;
DROP TABLE payments.x402_refund_cursors;
