"""The audit daemon: watches the agents' state directories and records in SQLite what happens there."""
