ALTER TABLE settlement.settlement_commands DROP COLUMN reverts;
DROP TABLE settlement.network_limits;
