"""Ray: connection, distribution of work, retries of lost work."""
