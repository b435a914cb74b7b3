"""SQL: the truth about voices, the fleet log, leases, consent and audit."""
