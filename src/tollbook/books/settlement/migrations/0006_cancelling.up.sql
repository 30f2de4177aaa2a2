-- What was begun can be taken back as long as nothing of it is under way.

-- Why it is taken back. While it is `executed` it is not sent any more, and ends once no node can bring out what it
-- said it refused.
ALTER TABLE settlement.settlement_commands ADD COLUMN cancelling text;

CREATE OR REPLACE FUNCTION settlement.check_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status || ' ' || NEW.status NOT IN (
        'received validated', 'received refused', 'received cancelled', 'received expired',
        'validated executed', 'validated refused', 'validated cancelled', 'validated expired',
        'executed settled', 'executed failed',
        'executed cancelled',  -- while nothing of it was sent, or can come any more
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
