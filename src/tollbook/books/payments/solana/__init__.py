"""The exact scheme on Solana."""
