-- What the Solana facilitator signed: one row a message, on disk before the message is broadcast.
--
-- No transaction is in it: with the payer's signature it could be sent by whoever reads it. A message can
-- land once, so sending it again is the same payment; who presents it again brings its bytes along.

CREATE TABLE payments.x402_solana_settlements (
    network text NOT NULL CHECK (network LIKE 'solana:_%'),
    -- SHA-256 of what every signer of the message signed.
    message_hash bytea NOT NULL CHECK (length(message_hash) = 32),
    signed_at timestamptz NOT NULL,
    sent_at timestamptz NOT NULL,
    ended_at timestamptz,
    -- The chain's newest slot then: if the message landed, it did after it.
    signed_slot bigint NOT NULL CHECK (signed_slot >= 0),
    -- A block higher than this cannot hold the message.
    last_valid_height bigint NOT NULL CHECK (last_valid_height >= 0),
    landed_slot bigint CHECK (landed_slot >= 0),
    fee_lamports bigint CHECK (fee_lamports >= 0),
    sends integer NOT NULL DEFAULT 1 CHECK (sends > 0),
    amount numeric(20, 0) NOT NULL CHECK (amount > 0),
    -- What the recipient's token account really gained.
    amount_moved numeric(20, 0),
    -- differs: it landed, and moved another amount than was signed (a token that takes a fee of its own).
    status text NOT NULL CHECK (status IN ('signed', 'settled', 'failed', 'differs')),
    signature text NOT NULL CHECK (signature <> ''),
    fee_payer text NOT NULL CHECK (fee_payer <> ''),
    payer text NOT NULL CHECK (payer <> ''),
    asset text NOT NULL CHECK (asset <> ''),
    pay_to text NOT NULL CHECK (pay_to <> ''),
    destination text NOT NULL CHECK (destination <> ''),
    reason text,

    PRIMARY KEY (network, message_hash),
    CONSTRAINT ends_have_a_time CHECK ((status = 'signed') = (ended_at IS NULL)),
    CONSTRAINT settled_has_moved CHECK (
        (status = 'settled') = coalesce(amount_moved = amount, false)
        AND (status NOT IN ('settled', 'differs') OR landed_slot IS NOT NULL)
        AND (status = 'differs') = coalesce(amount_moved <> amount, false)
    ),
    CONSTRAINT failures_say_why CHECK (status NOT IN ('failed', 'differs') OR reason IS NOT NULL)
);

-- solana_settlements.find by signature; one signature is of one message.
CREATE UNIQUE INDEX idx_x402_solana_settlements_signature
    ON payments.x402_solana_settlements (network, signature);
-- solana_settlements.find_open: those whose end is not known.
CREATE INDEX idx_x402_solana_settlements_open ON payments.x402_solana_settlements (signed_at)
    WHERE status = 'signed';
