DROP TABLE payments.x402_solana_settlements;
