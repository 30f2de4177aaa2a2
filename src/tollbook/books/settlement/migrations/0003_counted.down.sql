DROP TRIGGER limits_are_given_back ON settlement.settlement_commands;
CREATE TRIGGER limits_are_given_back AFTER UPDATE ON settlement.settlement_commands
    FOR EACH ROW WHEN (OLD.status IN ('validated', 'executed')
                       AND NEW.status IN ('refused', 'failed', 'expired', 'cancelled'))
    EXECUTE FUNCTION settlement.give_back();
ALTER TABLE settlement.settlement_commands DROP COLUMN counted;
