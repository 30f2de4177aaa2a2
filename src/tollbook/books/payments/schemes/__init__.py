"""The schemes beside exact: usage (upto) and channels (batch-settlement)."""
