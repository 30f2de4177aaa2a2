-- As before, but one that could pay twice, and was signed, keeps its nonce until that is another's for good.

-- A node may have taken what it said it refused, and show it to nobody: only what has the same nonce can never
-- be mined beside it. While another of ours that is not final has the nonce, it is given none, nor is it from
-- another account. One whose nonce was seen to be a stranger's is dropped without it.
CREATE OR REPLACE FUNCTION core.take_nonces(
    chain text, senders text[], ids bigint[], purposes text[], fingerprints bytea[], at timestamptz,
    only_gaps boolean
) RETURNS TABLE (purpose text, transaction_id bigint, sender text, nonce bigint, taken boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    chosen core.lanes;
    careful text[];
    ready bigint[];
    own bigint[];
    own_nonces bigint[];
    claimed bigint[];
    others bigint[];
    nonces bigint[];
    fresh integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    -- LOOK_FIRST in core/lanes/transactions.py.
    careful := ARRAY(SELECT p FROM unnest(purposes) AS p WHERE p LIKE 'command:%' OR p LIKE 'refund:%');
    IF cardinality(careful) > 0 THEN
        WITH held AS MATERIALIZED (
            SELECT t.transaction_id, t.purpose, t.sender, t.nonce,
                   t.nonce IS NOT NULL AND cardinality(t.hashes || t.former_hashes) > 0 AS may_come
            FROM core.transactions t WHERE t.purpose = ANY (purposes)
            ORDER BY t.purpose COLLATE "C" FOR NO KEY UPDATE
        ), fates AS (
            SELECT h.transaction_id, h.nonce,
                   NOT h.may_come OR o.confirmed_at IS NOT NULL AS is_free,
                   h.may_come AND h.sender = ALL (senders) AND o.transaction_id IS NULL AND row_number() OVER (
                       PARTITION BY h.may_come, h.sender, h.nonce ORDER BY h.purpose) = 1 AS is_own
            FROM held h LEFT JOIN core.transactions o
              ON o.network = chain AND o.sender = h.sender AND o.nonce = h.nonce
             AND o.status NOT IN ('lost', 'dropped') AND o.transaction_id <> h.transaction_id
            WHERE h.purpose = ANY (careful)
        )
        SELECT array_agg(f.transaction_id) FILTER (WHERE f.is_free OR f.is_own),
               array_agg(f.transaction_id ORDER BY f.transaction_id) FILTER (WHERE f.is_own),
               array_agg(f.nonce ORDER BY f.transaction_id) FILTER (WHERE f.is_own)
        INTO ready, own, own_nonces FROM fates f;
    END IF;
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
              AND (t.purpose <> ALL (careful) OR t.transaction_id = ANY (ready))
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
        others := claimed;
        IF own IS NOT NULL THEN
            SELECT coalesce(array_agg(k.transaction_id), '{}'), coalesce(array_agg(k.nonce), '{}')
            INTO own, own_nonces FROM unnest(own, own_nonces) AS k (transaction_id, nonce)
            WHERE k.transaction_id = ANY (claimed);
            DELETE FROM core.lane_gaps g
            WHERE g.network = chain AND g.sender = chosen.sender AND g.nonce = ANY (own_nonces);
            UPDATE core.transactions t SET sender = chosen.sender, nonce = k.nonce
            FROM unnest(own, own_nonces) AS k (transaction_id, nonce)
            WHERE t.transaction_id = k.transaction_id;
            others := ARRAY(
                SELECT c.id FROM unnest(claimed) WITH ORDINALITY AS c (id, place)
                WHERE c.id <> ALL (own) ORDER BY c.place
            );
        END IF;
        WITH gone AS (
            DELETE FROM core.lane_gaps g
            WHERE g.network = chain AND g.sender = chosen.sender AND g.nonce IN (
                SELECT f.nonce FROM core.lane_gaps f
                WHERE f.network = chain AND f.sender = chosen.sender
                ORDER BY f.nonce LIMIT cardinality(others)
            )
            RETURNING g.nonce
        )
        SELECT coalesce(array_agg(g.nonce ORDER BY g.nonce), '{}') INTO nonces FROM gone g;
        fresh := CASE WHEN only_gaps THEN 0 ELSE cardinality(others) - cardinality(nonces) END;
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
        FROM unnest(others, nonces) AS w (transaction_id, nonce)
        WHERE t.transaction_id = w.transaction_id AND t.status = 'reserved';
    END IF;

    RETURN QUERY
        SELECT t.purpose, t.transaction_id, t.sender, t.nonce,
               coalesce(t.transaction_id = ANY (claimed), false) AND t.status = 'reserved'
        FROM core.transactions t WHERE t.purpose = ANY (purposes);
END
$$;
