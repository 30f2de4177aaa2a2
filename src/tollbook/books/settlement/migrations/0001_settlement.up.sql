-- The settlement book: commands to pay somebody on a chain, and what became of each.
--
-- What may follow what is held here, by triggers: whoever changes a status, by whatever statement, takes a
-- legal step, and its row in command_moves and its fact in core.journal are written with it. The schema is
-- there already: core's webhooks are in it.

-- One row a command. The reference's nine columns come first and are enough to insert one.
CREATE TABLE settlement.settlement_commands (
    command_id varchar(128) PRIMARY KEY CHECK (command_id <> ''),
    workflow_id varchar(128) NOT NULL,
    account_ref varchar(128) NOT NULL,
    payer varchar(128),
    payee varchar(128),
    asset_symbol varchar(64),
    -- 'NaN' is greater than every number.
    amount_numeric numeric(38, 18) CHECK (amount_numeric > 0 AND amount_numeric < 'NaN'),
    status varchar(32) NOT NULL DEFAULT 'received' CHECK (status IN (
        'received', 'validated', 'executed', 'settled', 'refused', 'failed', 'expired', 'cancelled')),
    last_updated timestamptz NOT NULL DEFAULT now(),
    received_at timestamptz NOT NULL DEFAULT now(),
    validated_at timestamptz,
    executed_at timestamptz,
    settled_at timestamptz,
    ended_at timestamptz,
    expires_at timestamptz,
    next_attempt_at timestamptz DEFAULT now(),  -- when the worker shall look at it; null where it has ended
    chain_id bigint NOT NULL DEFAULT 0 CHECK (chain_id >= 0),  -- as asked for; 0 is the default network
    transaction_id bigint,  -- core.transactions'
    round integer NOT NULL DEFAULT 0 CHECK (round >= 0),  -- how often it was tried again after a sure failure
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- of this round
    decimals smallint CHECK (decimals BETWEEN 0 AND 36),
    amount_minor numeric(78, 0) CHECK (amount_minor > 0),
    network text CHECK (network LIKE '___%:_%'),  -- CAIP-2
    asset text CHECK (asset ~ '^0x[0-9a-f]{40}$'),  -- null: the network's own coin, once validated
    tx_hash text CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    error text,  -- why it stands where it stands, or what went wrong last
    fingerprint bytea CHECK (length(fingerprint) = 32),  -- of what was asked for; null: a plain INSERT's

    CONSTRAINT status_fits_worker CHECK (
        (status IN ('received', 'validated', 'executed')) = (next_attempt_at IS NOT NULL)),
    CONSTRAINT status_fits_end CHECK (
        (status IN ('received', 'validated', 'executed')) = (ended_at IS NULL)),
    CONSTRAINT status_fits_validated CHECK (
        status NOT IN ('validated', 'executed', 'settled', 'failed')
        OR num_nulls(validated_at, network, decimals, amount_minor, payee) = 0),
    CONSTRAINT status_fits_executed CHECK (
        CASE WHEN status IN ('executed', 'settled', 'failed') THEN executed_at IS NOT NULL
             ELSE num_nonnulls(executed_at, transaction_id, tx_hash) = 0 END),
    CONSTRAINT status_fits_settled CHECK (
        CASE WHEN status = 'settled' THEN num_nulls(settled_at, tx_hash) = 0 ELSE settled_at IS NULL END),
    CONSTRAINT refusals_say_why CHECK (status NOT IN ('refused', 'failed') OR error IS NOT NULL)
);
-- due: what the worker has to look at, the longest waiting first; and all that is executed.
CREATE INDEX settlement_commands_due ON settlement.settlement_commands (status, network, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX settlement_commands_expiring ON settlement.settlement_commands (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('received', 'validated');
-- commands.page: newest first; those that did not end well; and those of one workflow.
CREATE INDEX settlement_commands_received_at ON settlement.settlement_commands (received_at, command_id);
CREATE INDEX settlement_commands_ended ON settlement.settlement_commands (status, received_at, command_id)
    WHERE status IN ('refused', 'failed', 'expired', 'cancelled');
CREATE INDEX settlement_commands_workflow_id
    ON settlement.settlement_commands (workflow_id, received_at, command_id) WHERE workflow_id <> '';

-- Every step a command took after `received`.
CREATE TABLE settlement.command_moves (
    command_id varchar(128) REFERENCES settlement.settlement_commands,
    move_id integer CHECK (move_id > 0),  -- 1, 2, 3 … of each command
    at timestamptz NOT NULL,
    from_status varchar(32) NOT NULL,
    to_status varchar(32) NOT NULL,
    reason text,
    tx_hash text,
    PRIMARY KEY (command_id, move_id)
);

-- What a day's commands add up to, for the limits. `payee` '' is all payees, `asset` '' the network's own coin.
CREATE TABLE settlement.spending (
    network text,
    asset text,
    payee text,
    day date,
    amount_minor numeric(78, 0) NOT NULL CHECK (amount_minor >= 0),
    PRIMARY KEY (network, asset, payee, day)
);

-- Every command begins as received. Other spellings of the word are made ours: the reference writes RECEIVED.
CREATE FUNCTION settlement.begin_command() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF lower(NEW.status) <> 'received' THEN
        RAISE EXCEPTION 'command % cannot begin as %', NEW.command_id, NEW.status
            USING ERRCODE = 'restrict_violation', HINT = 'Insert it as received; the worker does the rest.';
    END IF;
    NEW.status := 'received';
    RETURN NEW;
END
$$;
CREATE TRIGGER command_begins_as_received BEFORE INSERT ON settlement.settlement_commands
    FOR EACH ROW WHEN (NEW.status IS DISTINCT FROM 'received') EXECUTE FUNCTION settlement.begin_command();

-- One statement for all the rows of one INSERT or COPY.
CREATE FUNCTION settlement.tell_received() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO core.journal (book, kind, subject, from_party, to_party, details)
    SELECT 'settlement', 'received', c.command_id, nullif(c.payer, ''), nullif(c.payee, ''),
           -- Of texts: a fifth cheaper for the whole row than jsonb_build_object.
           jsonb_object(ARRAY['amount', trim_scale(c.amount_numeric)::text, 'asset_symbol', c.asset_symbol,
                              'chain_id', c.chain_id::text, 'workflow_id', c.workflow_id,
                              'account_ref', c.account_ref])
    FROM received AS c;
    RETURN NULL;
END
$$;
CREATE TRIGGER commands_are_told AFTER INSERT ON settlement.settlement_commands
    REFERENCING NEW TABLE AS received FOR EACH STATEMENT EXECUTE FUNCTION settlement.tell_received();

CREATE FUNCTION settlement.check_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status || ' ' || NEW.status NOT IN (
        'received validated', 'received refused', 'received cancelled', 'received expired',
        'validated executed', 'validated refused', 'validated cancelled', 'validated expired',
        'executed settled', 'executed failed',
        'failed validated',   -- tried again, in a new round
        'settled executed')   -- a deep reorganisation took it back
    THEN
        RAISE EXCEPTION 'command % is % and cannot become %', NEW.command_id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status = 'failed' AND NEW.round <> OLD.round + 1 THEN
        RAISE EXCEPTION 'command % is tried again in a round of its own', NEW.command_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.last_updated = OLD.last_updated THEN
        NEW.last_updated := now();
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER command_takes_legal_steps BEFORE UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION settlement.check_step();

CREATE FUNCTION settlement.refuse_command_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what command % asks for does not change: % refused', OLD.command_id, TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Cancel it, and send another with an id of its own.';
END
$$;
CREATE TRIGGER command_keeps_its_content BEFORE UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (
        (OLD.command_id, OLD.workflow_id, OLD.account_ref, OLD.payer, OLD.payee, OLD.asset_symbol,
         OLD.amount_numeric, OLD.chain_id, OLD.received_at, OLD.expires_at, OLD.fingerprint)
        IS DISTINCT FROM
        (NEW.command_id, NEW.workflow_id, NEW.account_ref, NEW.payer, NEW.payee, NEW.asset_symbol,
         NEW.amount_numeric, NEW.chain_id, NEW.received_at, NEW.expires_at, NEW.fingerprint)
        OR (OLD.status <> 'received' AND
            (OLD.network, OLD.asset, OLD.decimals, OLD.amount_minor)
            IS DISTINCT FROM (NEW.network, NEW.asset, NEW.decimals, NEW.amount_minor))
    ) EXECUTE FUNCTION settlement.refuse_command_change();
-- A command that was forgotten could be paid again.
CREATE TRIGGER command_stays BEFORE DELETE ON settlement.settlement_commands
    FOR EACH ROW EXECUTE FUNCTION settlement.refuse_command_change();

CREATE FUNCTION settlement.tell_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO settlement.command_moves (command_id, move_id, at, from_status, to_status, reason, tx_hash)
    -- The command's row is locked: no other move is being numbered.
    SELECT NEW.command_id, coalesce(max(m.move_id), 0) + 1, NEW.last_updated, OLD.status, NEW.status,
           NEW.error, NEW.tx_hash
    FROM settlement.command_moves m WHERE m.command_id = NEW.command_id;
    INSERT INTO core.journal (book, kind, subject, network, asset, amount, from_party, to_party, details)
    VALUES (
        'settlement',
        CASE WHEN NEW.status = 'settled' THEN 'confirmed' WHEN OLD.status = 'settled' THEN 'reopened'
             ELSE NEW.status END,
        NEW.command_id, NEW.network,
        CASE WHEN NEW.amount_minor IS NOT NULL THEN coalesce(NEW.asset, 'native') END, NEW.amount_minor,
        nullif(NEW.payer, ''), nullif(NEW.payee, ''),
        jsonb_strip_nulls(jsonb_build_object(
            'from', OLD.status, 'to', NEW.status, 'round', NEW.round, 'reason', NEW.error,
            'tx_hash', NEW.tx_hash, 'amount', trim_scale(NEW.amount_numeric)::text,
            'asset_symbol', NEW.asset_symbol, 'chain_id', NEW.chain_id::text,
            'workflow_id', NEW.workflow_id, 'account_ref', NEW.account_ref))
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER moves_are_told AFTER UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION settlement.tell_move();

-- What a command took from its day's limits, where it ends without paying. The sum of all payees is locked
-- first, as limits.take does.
CREATE FUNCTION settlement.give_back() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken_on constant date := (OLD.validated_at AT TIME ZONE 'UTC')::date;
BEGIN
    PERFORM FROM settlement.spending s
    WHERE s.network = OLD.network AND s.asset = coalesce(OLD.asset, '')
      AND s.payee IN ('', lower(OLD.payee)) AND s.day = taken_on
    ORDER BY s.payee FOR UPDATE;
    UPDATE settlement.spending s SET amount_minor = greatest(s.amount_minor - OLD.amount_minor, 0)
    WHERE s.network = OLD.network AND s.asset = coalesce(OLD.asset, '')
      AND s.payee IN ('', lower(OLD.payee)) AND s.day = taken_on;
    RETURN NULL;
END
$$;
CREATE TRIGGER limits_are_given_back AFTER UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (OLD.status IN ('validated', 'executed')
                       AND NEW.status IN ('refused', 'failed', 'expired', 'cancelled'))
    EXECUTE FUNCTION settlement.give_back();
