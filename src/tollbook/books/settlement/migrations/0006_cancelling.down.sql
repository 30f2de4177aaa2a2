CREATE OR REPLACE FUNCTION settlement.check_step() RETURNS trigger LANGUAGE plpgsql AS $$
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
ALTER TABLE settlement.settlement_commands DROP COLUMN cancelling;
