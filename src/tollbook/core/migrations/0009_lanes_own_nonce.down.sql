CREATE OR REPLACE FUNCTION core.take_nonces(
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
                sealed_call = NULL, created_at = excluded.created_at, sent_at = NULL,
                -- The newest hundred.
                former_hashes = (t.former_hashes || t.hashes)[cardinality(t.former_hashes || t.hashes) - 99:]
            WHERE t.status = 'dropped' AND NOT t.barred AND t.fingerprint = excluded.fingerprint
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
