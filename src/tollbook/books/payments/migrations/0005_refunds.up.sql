-- Refunds that a restored database forgot are found again on their chains; refunds on Solana.

-- How far each operator's account was read for transfers that carry a refund's mark: from `first` to and with
-- `position` every one is in the books, or a difference names it. A restored database has its old position, and
-- a refund was written down before its block: so whatever was forgotten is after it.
CREATE TABLE payments.x402_refund_cursors (
    network text,
    asset text,
    sender text,
    first bigint NOT NULL CHECK (first >= 0),
    position bigint NOT NULL CHECK (position >= first),
    PRIMARY KEY (network, asset, sender)
);

-- Found on the chain, and nobody has asked these books for it yet: who asks for the same sum means this one.
ALTER TABLE payments.x402_refunds ADD COLUMN recalled boolean NOT NULL DEFAULT false;
-- forgotten_refunds.book: one transaction pays one refund.
CREATE UNIQUE INDEX idx_x402_refunds_tx_hash ON payments.x402_refunds (network, tx_hash) WHERE tx_hash IS NOT NULL;

-- What was signed on Solana to pay a refund: on disk before it is sent. Another one is signed only when it is sure
-- that the last one is in no block and never will be.
CREATE TABLE payments.x402_solana_refunds (
    refund_id bigint NOT NULL REFERENCES payments.x402_refunds,
    signed_at timestamptz NOT NULL,
    sent_at timestamptz NOT NULL,
    ended_at timestamptz,
    -- The chain's newest slot then: if it landed, it did after it.
    signed_slot bigint NOT NULL CHECK (signed_slot >= 0),
    -- A block higher than this cannot hold it.
    last_valid_height bigint NOT NULL CHECK (last_valid_height >= 0),
    status text NOT NULL CHECK (status IN ('signed', 'landed', 'failed', 'expired')),
    signature text PRIMARY KEY CHECK (signature <> ''),
    sender text NOT NULL CHECK (sender <> ''),
    -- Signed by the operator alone: whoever sends it pays this refund, once.
    transaction bytea NOT NULL,

    CONSTRAINT ends_have_a_time CHECK ((status = 'signed') = (ended_at IS NULL))
);
-- solana.refunds: one may be on its way.
CREATE UNIQUE INDEX idx_x402_solana_refunds_open ON payments.x402_solana_refunds (refund_id)
    WHERE status IN ('signed', 'landed');

ALTER TABLE payments.x402_differences
    DROP CONSTRAINT x402_differences_kind_check,
    ADD CONSTRAINT x402_differences_kind_check CHECK (kind IN (
        'unknown', 'paid_not_granted', 'granted_not_paid', 'double', 'foreign_transfer', 'orphaned',
        'amount_differs', 'transaction_differs', 'settlement_missing', 'token_missing', 'refund_unknown',
        'refund_not_landed', 'refund_forgotten'));
