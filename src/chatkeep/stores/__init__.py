"""The stores for SQLite, PostgreSQL, MongoDB and memory, and what they share."""
