DROP TABLE stores.payment_identifiers, stores.sign_in_nonces, stores.sign_in_grants, stores.client_channels,
    stores.channel_turns, stores.channels, stores.settlement_keys, stores.pending_settlements;
DROP SCHEMA stores;
