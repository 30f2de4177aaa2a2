-- The ledger of settlements, and the answers that were paid for.

-- One row a signed payment that any facilitator was asked to settle; written before it is asked.
-- No signature is in it: what is here settles nothing.
CREATE TABLE payments.x402_settlements (
    settlement_id bigint PRIMARY KEY,
    asked_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Whoever asks holds the row until then; after that anybody may go on with it.
    held_until timestamptz NOT NULL,
    valid_before timestamptz,
    settled_at timestamptz,
    -- When the chain itself was last seen to agree, deep enough.
    confirmed_at timestamptz,
    holder bigint NOT NULL,
    block_number bigint CHECK (block_number >= 0),
    asks integer NOT NULL DEFAULT 1 CHECK (asks > 0),
    -- What was signed, and what the token's own log or balances say has moved.
    amount numeric(78, 0) NOT NULL CHECK (amount >= 0),
    amount_moved numeric(78, 0) CHECK (amount_moved >= 0),
    status text NOT NULL CHECK (status IN ('pending', 'settled', 'failed', 'unknown')),
    network text NOT NULL CHECK (network LIKE '___%:_%'),
    scheme text NOT NULL CHECK (scheme <> ''),
    asset text NOT NULL CHECK (asset <> ''),
    payer text NOT NULL CHECK (payer <> ''),
    pay_to text NOT NULL CHECK (pay_to <> ''),
    nonce text NOT NULL CHECK (nonce <> ''),
    facilitator text NOT NULL CHECK (facilitator <> ''),
    tx_hash text,
    reason text,
    -- The facilitator's SettleResponse, given again to who asks again.
    answer jsonb,

    CONSTRAINT settled_has_an_answer CHECK ((status = 'settled') = (settled_at IS NOT NULL AND answer IS NOT NULL)),
    CONSTRAINT others_say_why CHECK (status NOT IN ('failed', 'unknown') OR reason IS NOT NULL)
);

-- ledger.settle: one signed payment is one row, in however many processes it is presented.
CREATE UNIQUE INDEX idx_x402_settlements_identity
    ON payments.x402_settlements (network, asset, payer, nonce);
-- reconciler: those whose end is not known, and those the chain has not confirmed yet.
CREATE INDEX idx_x402_settlements_open ON payments.x402_settlements (held_until)
    WHERE status IN ('pending', 'unknown');
CREATE INDEX idx_x402_settlements_unconfirmed ON payments.x402_settlements (settled_at)
    WHERE status = 'settled' AND confirmed_at IS NULL;
-- reconciler: whose transaction is this?
CREATE INDEX idx_x402_settlements_tx_hash ON payments.x402_settlements (network, tx_hash) WHERE tx_hash IS NOT NULL;
-- reconciler --since
CREATE INDEX idx_x402_settlements_asked_at ON payments.x402_settlements (asked_at);

-- What each facilitator said it serves, for the days when it says nothing.
CREATE TABLE payments.x402_facilitators (
    facilitator text PRIMARY KEY,
    supported jsonb NOT NULL,
    asked_at timestamptz NOT NULL
);

-- One row a payment that came with a request: which request it bought, and what was answered.
-- The answer is sealed with the payment's own header, which is not kept: it opens for who presents it again.
CREATE TABLE payments.x402_answers (
    payment_id bigint PRIMARY KEY REFERENCES payments.x402_payments,
    holder bigint NOT NULL,
    held_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    status text NOT NULL CHECK (status IN ('running', 'open', 'kept', 'gone')),
    proof_hash bytea NOT NULL CHECK (length(proof_hash) = 32),
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    sealed_answer bytea,
    CONSTRAINT ends_have_an_answer CHECK ((status IN ('kept', 'gone')) = (sealed_answer IS NOT NULL))
);
-- answers.forget
CREATE INDEX idx_x402_answers_expiry ON payments.x402_answers (expires_at);

-- What was charged may be less than what was signed, and nothing at all (usage).
ALTER TABLE payments.x402_payments DROP CONSTRAINT x402_payments_amount_check;
ALTER TABLE payments.x402_payments ADD CONSTRAINT x402_payments_amount_check
    CHECK (amount > 0 OR (amount = 0 AND scheme IN ('upto', 'batch-settlement')));
