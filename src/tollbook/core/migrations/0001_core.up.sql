-- What every book stands on: the journal and its readers, labels, API keys, idempotency keys, partitions.

CREATE SCHEMA core;

-- Time partitions -----------------------------------------------------------------------------------------

-- Makes the range partitions of `parent` that cover now and `ahead` further steps; how many it made.
-- Bounds are multiples of `step` counted from a Monday, in UTC, so every caller makes the same ones.
CREATE FUNCTION core.ensure_partitions(parent regclass, step interval, ahead integer) RETURNS integer
LANGUAGE plpgsql
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $$
DECLARE
    home text;
    stem text;
    child text;
    lower_bound timestamptz;
    guard record;
    made integer := 0;
BEGIN
    IF ahead < 0 OR ahead > 1000 THEN
        RAISE EXCEPTION 'ahead must be between 0 and 1000, not %', ahead;
    END IF;
    SELECT n.nspname, c.relname INTO home, stem
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    PERFORM pg_advisory_xact_lock(hashtextextended('core.ensure_partitions', parent::oid::bigint));
    FOR nth IN 0..ahead LOOP
        lower_bound := date_bin(step, clock_timestamp(), '2024-01-01 00:00:00+00') + nth * step;
        child := format('%s_%s', stem, to_char(lower_bound, 'YYYYMMDD"t"HH24MI'));
        CONTINUE WHEN to_regclass(format('%I.%I', home, child)) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I.%I PARTITION OF %s FOR VALUES FROM (%L) TO (%L)',
            home, child, parent, lower_bound, lower_bound + step
        );
        -- PostgreSQL copies row triggers to partitions, but not the ones that refuse TRUNCATE.
        FOR guard IN
            SELECT tgname, tgfoid::regproc AS refusal FROM pg_trigger
            WHERE tgrelid = parent AND NOT tgisinternal AND (tgtype & 32) <> 0
        LOOP
            EXECUTE format(
                'CREATE TRIGGER %I BEFORE TRUNCATE ON %I.%I FOR EACH STATEMENT EXECUTE FUNCTION %s()',
                guard.tgname, home, child, guard.refusal
            );
        END LOOP;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

-- Drops the partitions of `parent` whose every row is older than `older_than`; how many it dropped.
CREATE FUNCTION core.drop_partitions(parent regclass, older_than interval) RETURNS integer
LANGUAGE plpgsql
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $$
DECLARE
    child regclass;
    dropped integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('core.ensure_partitions', parent::oid::bigint));
    FOR child IN
        SELECT c.oid::regclass
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent
          AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz
              <= clock_timestamp() - older_than
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %s', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- The journal ---------------------------------------------------------------------------------------------

-- Transaction numbers order the journal, and they start again in another cluster; the epoch counts those.
CREATE TABLE core.journal_epochs (
    epoch integer PRIMARY KEY CHECK (epoch > 0),
    began_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO core.journal_epochs (epoch) VALUES (1);

-- A plain sequence: before PostgreSQL 17 a partitioned table cannot be relied on to have an identity column.
CREATE SEQUENCE core.journal_entry_ids;

CREATE TABLE core.journal (
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    entry_id bigint NOT NULL DEFAULT nextval('core.journal_entry_ids'),
    epoch integer NOT NULL DEFAULT 1,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    book text NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    network text,
    asset text,
    amount numeric(78, 0) CHECK (amount >= 0),
    from_party text,
    to_party text,
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    -- The readers' order; recorded_at is there because a partition key must be.
    PRIMARY KEY (epoch, transaction_id, entry_id, recorded_at),
    CHECK (amount IS NULL OR (network IS NOT NULL AND asset IS NOT NULL))
) PARTITION BY RANGE (recorded_at);
ALTER SEQUENCE core.journal_entry_ids OWNED BY core.journal.entry_id;

CREATE FUNCTION core.refuse_journal_change() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Append a fact that reverses the one that is wrong.';
END
$$;

CREATE TRIGGER journal_refuses_change BEFORE UPDATE OR DELETE ON core.journal
    FOR EACH ROW EXECUTE FUNCTION core.refuse_journal_change();
CREATE TRIGGER journal_refuses_truncate BEFORE TRUNCATE ON core.journal
    FOR EACH STATEMENT EXECUTE FUNCTION core.refuse_journal_change();

SELECT core.ensure_partitions('core.journal', '7 days', 12);

-- Begins a new epoch where the journal came from another cluster, whose transaction numbers are ahead of
-- this one's; the epoch that holds. To be called at start-up, before its transaction appends anything.
-- The lock that ALTER TABLE takes is the barrier: every older fact is committed before the epoch begins.
CREATE FUNCTION core.check_journal_epoch() RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    current_epoch integer;
    from_elsewhere boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('core.check_journal_epoch', 0));
    SELECT max(e.epoch) INTO current_epoch FROM core.journal_epochs e;
    -- One statement, one snapshot: what it sees of this cluster is always below its own xmax.
    SELECT coalesce(
        (SELECT j.transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
         FROM core.journal j WHERE j.epoch = current_epoch
         ORDER BY j.epoch DESC, j.transaction_id DESC LIMIT 1),
        false
    ) INTO from_elsewhere;
    IF from_elsewhere THEN
        current_epoch := current_epoch + 1;
        EXECUTE format('ALTER TABLE core.journal ALTER COLUMN epoch SET DEFAULT %s', current_epoch);
        INSERT INTO core.journal_epochs (epoch) VALUES (current_epoch);
    END IF;
    RETURN current_epoch;
END
$$;

-- How far each reader has come; its next entry is the first one above this position.
CREATE TABLE core.journal_readers (
    name text PRIMARY KEY,
    epoch integer NOT NULL DEFAULT 0,
    transaction_id xid8 NOT NULL DEFAULT '0',
    entry_id bigint NOT NULL DEFAULT 0,
    advanced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Labels: long texts that repeat in hot tables, kept once and named there by two bytes ----------------------

CREATE TABLE core.labels (
    kind text,
    label_id smallint CHECK (label_id >= 0),
    label text NOT NULL,
    PRIMARY KEY (kind, label_id),
    UNIQUE (kind, label)
);

-- API keys -------------------------------------------------------------------------------------------------

CREATE TABLE core.api_keys (
    key_id bigint PRIMARY KEY,
    name text NOT NULL,
    secret_hash bytea NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    scopes text[] NOT NULL CHECK (cardinality(scopes) > 0),
    created_at timestamptz NOT NULL,
    expires_at timestamptz CHECK (expires_at > created_at),
    revoked_at timestamptz,
    last_used_at timestamptz
);

-- Idempotency keys: which POSTs were answered, and with what, readable only with the key itself ------------

CREATE TABLE core.idempotency_keys (
    caller bigint,
    key_hash bytea CHECK (length(key_hash) = 32),
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    status text NOT NULL CHECK (status IN ('running', 'done')),
    attempt_id bigint NOT NULL,
    started_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    response_status smallint,
    sealed_response bytea,
    PRIMARY KEY (caller, key_hash),
    CHECK ((status = 'done') = (response_status IS NOT NULL)),
    CHECK ((status = 'done') = (sealed_response IS NOT NULL))
);
CREATE INDEX idempotency_keys_expires_at ON core.idempotency_keys (expires_at);
