DROP FUNCTION core.take_nonces(text, text[], bigint[], text[], bytea[], timestamptz, boolean);
DROP TABLE core.transactions, core.lane_gaps, core.lanes;
