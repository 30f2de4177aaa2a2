ALTER TABLE settlement.settlement_commands DROP CONSTRAINT times_can_be_read;
