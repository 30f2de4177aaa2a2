-- Only what was counted for the day's limits is given back: a limit may be set after a command was validated.
ALTER TABLE settlement.settlement_commands ADD COLUMN counted boolean NOT NULL DEFAULT false;
DROP TRIGGER limits_are_given_back ON settlement.settlement_commands;
CREATE TRIGGER limits_are_given_back AFTER UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (OLD.counted AND OLD.status IN ('validated', 'executed')
                       AND NEW.status IN ('refused', 'failed', 'expired', 'cancelled'))
    EXECUTE FUNCTION settlement.give_back();
