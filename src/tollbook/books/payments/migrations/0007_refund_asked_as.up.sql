-- The id under which a refund that was found on the chain was asked for: by that it is found, asked for again.
ALTER TABLE payments.x402_refunds ADD COLUMN asked_as bigint;
