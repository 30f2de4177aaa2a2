"""Tollbook keeps the books for x402 on PostgreSQL."""
