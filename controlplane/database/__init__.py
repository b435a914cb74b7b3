"""SQL: the truth about voices, the fleet log, leases, consent and audit."""

# The tables of both modules are one database: whoever compares it with its migrations has to see all of them.
from controlplane.database import spaces_schema as spaces_schema
