-- Times that no worker could read, such as 'infinity', would keep it from reading what waits beside them.
ALTER TABLE settlement.settlement_commands ADD CONSTRAINT times_can_be_read CHECK (
    least(last_updated, received_at, expires_at, next_attempt_at) > '0001-01-02 00:00+00'
    AND greatest(last_updated, received_at, expires_at, next_attempt_at) < '9999-12-31 00:00+00');
