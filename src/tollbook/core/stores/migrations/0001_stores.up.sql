-- The stores of the official x402 SDK: what it keeps in process memory, kept where every process sees it.
-- Of keys and nonces only the SHA-256 is kept: some are signatures, and all have any length.

CREATE SCHEMA stores;

-- Facilitator: transactions that were broadcast and are not known to be confirmed.
CREATE TABLE stores.pending_settlements (
    key_hash bytea PRIMARY KEY CHECK (octet_length(key_hash) = 32),
    tx_hash text NOT NULL,
    broadcast_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pending_settlements_broadcast_at ON stores.pending_settlements (broadcast_at);

-- Facilitator, Solana: payments that are being settled at this moment.
CREATE TABLE stores.settlement_keys (
    key_hash bytea PRIMARY KEY CHECK (octet_length(key_hash) = 32),
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX settlement_keys_seen_at ON stores.settlement_keys (seen_at);

-- Seller: payment channels. Amounts are minor units; times are the SDK's milliseconds or, where the chain gave
-- them, seconds. The highest voucher ever signed is kept beside the last one: a cheaper request may follow a
-- dearer one that came to nothing, and then the last voucher is not the one worth most.
CREATE TABLE stores.channels (
    channel_id text PRIMARY KEY CHECK (channel_id ~ '^0x[0-9a-f]{64}$'),
    channel_config jsonb NOT NULL,
    charged_cumulative_amount numeric(78, 0) NOT NULL CHECK (charged_cumulative_amount >= 0),
    signed_max_claimable numeric(78, 0) NOT NULL CHECK (signed_max_claimable >= 0),
    signature text NOT NULL,
    highest_signed_max numeric(78, 0) NOT NULL,
    highest_signature text NOT NULL,
    balance numeric(78, 0) NOT NULL,
    total_claimed numeric(78, 0) NOT NULL,
    withdraw_requested_at bigint NOT NULL,
    refund_nonce numeric(78, 0) NOT NULL,
    onchain_synced_at bigint,
    last_request_timestamp bigint NOT NULL,
    pending_id text,
    pending_signed_max numeric(78, 0),
    pending_expires_at bigint,
    CONSTRAINT channels_charge_is_signed CHECK (charged_cumulative_amount <= highest_signed_max),
    CONSTRAINT channels_highest_is_highest CHECK (signed_max_claimable <= highest_signed_max),
    CONSTRAINT channels_pending_is_whole CHECK (num_nulls(pending_id, pending_signed_max, pending_expires_at) IN (0, 3))
);

-- Whose turn a channel is: one request at a time, or one client that was told to sign again and is expected back.
CREATE TABLE stores.channel_turns (
    channel_id text PRIMARY KEY,
    corrects boolean NOT NULL,
    ends_at timestamptz NOT NULL
);

-- Buyer: the same channels from the other side, each owner's own.
CREATE TABLE stores.client_channels (
    owner text NOT NULL,
    channel_id text NOT NULL CHECK (channel_id ~ '^0x[0-9a-f]{64}$'),
    charged_cumulative_amount numeric(78, 0) CHECK (charged_cumulative_amount >= 0),
    balance numeric(78, 0),
    total_claimed numeric(78, 0),
    signed_max_claimable numeric(78, 0),
    signature text,
    extra jsonb NOT NULL,
    PRIMARY KEY (owner, channel_id)
);

-- Seller: who has paid for which path, until when, and how many times it may still be used (null: any number).
CREATE TABLE stores.sign_in_grants (
    address text NOT NULL,
    resource text NOT NULL,
    expires_at timestamptz NOT NULL,
    uses_left bigint CHECK (uses_left >= 0),
    PRIMARY KEY (address, resource)
);
CREATE INDEX sign_in_grants_expires_at ON stores.sign_in_grants (expires_at);

CREATE TABLE stores.sign_in_nonces (
    nonce_hash bytea PRIMARY KEY CHECK (octet_length(nonce_hash) = 32),
    used_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sign_in_nonces_used_at ON stores.sign_in_nonces (used_at);

-- Seller: requests by their payment identifier, and the answer each was given, sealed with a key derived from it.
CREATE TABLE stores.payment_identifiers (
    identifier_hash bytea PRIMARY KEY CHECK (octet_length(identifier_hash) = 32),
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    status text NOT NULL CHECK (status IN ('running', 'done', 'too_large')),
    attempt_id uuid NOT NULL,
    leased_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    sealed_answer bytea,
    CONSTRAINT payment_identifiers_done_has_answer CHECK ((status = 'done') = (sealed_answer IS NOT NULL))
);
CREATE INDEX payment_identifiers_expires_at ON stores.payment_identifiers (expires_at);
