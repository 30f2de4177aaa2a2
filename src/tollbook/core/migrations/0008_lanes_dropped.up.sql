-- What was dropped under a nonce that waits in a node: it may have been taken all the same.
CREATE INDEX transactions_dropped ON core.transactions (network, sender, nonce) WHERE status = 'dropped';
