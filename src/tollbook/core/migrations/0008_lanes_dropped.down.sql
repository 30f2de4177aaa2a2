DROP INDEX core.transactions_dropped;
