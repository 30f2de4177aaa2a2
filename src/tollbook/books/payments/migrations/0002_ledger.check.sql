-- Only reads: a check also runs on a database with money in it.
SELECT settlement_id, status, answer FROM payments.x402_settlements LIMIT 1;
SELECT payment_id, status, sealed_answer FROM payments.x402_answers LIMIT 1;
