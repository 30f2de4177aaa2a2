-- Lanes: one row of nonces per network and key, and every transaction that was given one.

CREATE TABLE core.lanes (
    network text,
    sender text CHECK (sender ~ '^0x[0-9a-f]{40}$'),
    next_nonce bigint NOT NULL CHECK (next_nonce >= 0),
    PRIMARY KEY (network, sender)
);

-- Nonces that were handed out and surely not used. They go to the next calls, lowest first.
CREATE TABLE core.lane_gaps (
    network text,
    sender text,
    nonce bigint CHECK (nonce >= 0),
    PRIMARY KEY (network, sender, nonce),
    FOREIGN KEY (network, sender) REFERENCES core.lanes (network, sender)
);

-- reserved: it has a nonce and is not signed yet; nothing has left the process.
-- signed:   it may be on its way, or not. sent: a node has it. mined: it is in a block.
-- dropped:  it never was, and never will be, in a block under the nonce it had; it may be tried again.
CREATE TABLE core.transactions (
    transaction_id bigint PRIMARY KEY,
    purpose text NOT NULL UNIQUE,
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
    network text NOT NULL,
    sender text,
    nonce bigint,
    status text NOT NULL CHECK (status IN ('reserved', 'signed', 'sent', 'mined', 'dropped')),
    hash text CHECK (hash ~ '^0x[0-9a-f]{64}$'),
    hashes text[] NOT NULL DEFAULT '{}',
    -- How often it was handed to a node: a refusal is believed only where no other answer is outstanding.
    sends integer NOT NULL DEFAULT 0,
    gas bigint,
    fee_max bigint,  -- wei per gas
    tip_max bigint,  -- wei per gas; null in a network without EIP-1559
    -- Receiver, value and call data, which hold payers' signatures; gone once the transaction is final.
    sealed_call bytea,
    succeeded boolean,
    block_number bigint,
    block_hash text,
    gas_used bigint,
    fee_paid numeric(78, 0),  -- wei
    created_at timestamptz NOT NULL,
    sent_at timestamptz,
    mined_at timestamptz,
    confirmed_at timestamptz,
    CHECK (status = 'dropped' OR (sender IS NULL) = (nonce IS NULL)),
    CHECK (status IN ('reserved', 'dropped') OR (nonce IS NOT NULL AND hash IS NOT NULL AND sends > 0)),
    CHECK (status NOT IN ('signed', 'sent') OR sealed_call IS NOT NULL),
    CHECK ((status = 'mined') = (block_hash IS NOT NULL)),
    CHECK (confirmed_at IS NULL OR (status = 'mined' AND sealed_call IS NULL))
) WITH (fillfactor = 70);
-- One nonce, one transaction: whatever else goes wrong.
CREATE UNIQUE INDEX transactions_nonce ON core.transactions (network, sender, nonce)
    WHERE status <> 'dropped' AND nonce IS NOT NULL;
CREATE INDEX transactions_open ON core.transactions (network, sender)
    WHERE status IN ('reserved', 'signed', 'sent');
CREATE INDEX transactions_unfinished ON core.transactions (network, sender, nonce)
    WHERE confirmed_at IS NULL AND status <> 'dropped';

-- Gives each purpose that is new, or was dropped, a nonce of the lane with the fewest open transactions;
-- returns a row for each purpose, `taken` where it got one now. Purposes come sorted, so that two
-- callers wait for each other in one order. With `only_gaps`, no nonce is taken that was never handed out.
-- It must be a transaction of its own: the lane's row is locked until it ends. It need not reach the disk
-- before it is answered, since a nonce whose reservation is lost was not used: signing is what is waited for.
CREATE FUNCTION core.take_nonces(
    chain text, senders text[], ids bigint[], purposes text[], fingerprints bytea[], at timestamptz,
    only_gaps boolean
) RETURNS TABLE (purpose text, transaction_id bigint, sender text, nonce bigint, taken boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    chosen core.lanes;
    claimed bigint[];
    nonces bigint[];
    fresh integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH claims AS (
        INSERT INTO core.transactions AS t (transaction_id, purpose, fingerprint, network, status, created_at)
        SELECT w.id, w.purpose, w.fingerprint, chain, 'reserved', at
        FROM unnest(ids, purposes, fingerprints) AS w (id, purpose, fingerprint)
        ON CONFLICT (purpose) DO UPDATE
            SET status = 'reserved', sender = NULL, nonce = NULL, hash = NULL, hashes = '{}', sends = 0,
                sealed_call = NULL, created_at = excluded.created_at, sent_at = NULL
            WHERE t.status = 'dropped' AND t.fingerprint = excluded.fingerprint
        RETURNING transaction_id, t.purpose
    )
    SELECT array_agg(c.transaction_id ORDER BY c.purpose) INTO claimed FROM claims c;

    IF claimed IS NOT NULL THEN
        SELECT l.* INTO STRICT chosen FROM core.lanes l
        WHERE l.network = chain AND l.sender = (
            SELECT s.sender FROM unnest(senders) AS s (sender)
            ORDER BY CASE WHEN cardinality(senders) > 1 THEN (
                SELECT count(*) FROM core.transactions t
                WHERE t.network = chain AND t.sender = s.sender AND t.status IN ('reserved', 'signed', 'sent')
            ) END, random()
            LIMIT 1
        )
        FOR NO KEY UPDATE;
        WITH gone AS (
            DELETE FROM core.lane_gaps g
            WHERE g.network = chain AND g.sender = chosen.sender AND g.nonce IN (
                SELECT f.nonce FROM core.lane_gaps f
                WHERE f.network = chain AND f.sender = chosen.sender
                ORDER BY f.nonce LIMIT cardinality(claimed)
            )
            RETURNING g.nonce
        )
        SELECT coalesce(array_agg(g.nonce ORDER BY g.nonce), '{}') INTO nonces FROM gone g;
        fresh := CASE WHEN only_gaps THEN 0 ELSE cardinality(claimed) - cardinality(nonces) END;
        IF fresh > 0 THEN
            UPDATE core.lanes l SET next_nonce = l.next_nonce + fresh
            WHERE l.network = chain AND l.sender = chosen.sender;
            nonces := nonces || ARRAY(
                SELECT n FROM generate_series(chosen.next_nonce, chosen.next_nonce + fresh - 1) AS n
            );
        END IF;
        UPDATE core.transactions t
        SET status = CASE WHEN w.nonce IS NULL THEN 'dropped' ELSE 'reserved' END,
            sender = chosen.sender, nonce = w.nonce
        FROM unnest(claimed, nonces) AS w (transaction_id, nonce)
        WHERE t.transaction_id = w.transaction_id AND t.status = 'reserved';
    END IF;

    RETURN QUERY
        SELECT t.purpose, t.transaction_id, t.sender, t.nonce,
               coalesce(t.transaction_id = ANY (claimed), false) AND t.status = 'reserved'
        FROM core.transactions t WHERE t.purpose = ANY (purposes);
END
$$;
