"""Postgres: the server, its schema, and the ledger that says what exists."""
