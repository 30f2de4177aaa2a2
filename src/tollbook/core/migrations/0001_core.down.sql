DROP TABLE core.idempotency_keys, core.api_keys, core.labels, core.journal_readers, core.journal, core.journal_epochs;
DROP FUNCTION core.check_journal_epoch(), core.refuse_journal_change(),
    core.ensure_partitions(regclass, interval, integer), core.drop_partitions(regclass, interval);
DROP SCHEMA core;
