-- Only reads: a check also runs on a database with money in it.
SELECT owner FROM payments.x402_settlements LIMIT 1;
SELECT broken FROM payments.x402_answers LIMIT 1;
