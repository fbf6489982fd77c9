"""What mends a server, for errors and for `check` alike; `{role}` stands for the listener's role."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACCEPT_GAP",
    "LOGICAL",
    "PARTITIONED",
    "PARTITIONED_CURE",
    "PRIMARY",
    "REPLICATION",
    "SENDERS",
    "SLOTS",
    "TLS",
]

ACCEPT_GAP: Final = "To go on without what is missing: python -m listener run --accept-gap"

LOGICAL: Final = (
    "ALTER SYSTEM SET wal_level = 'logical';   then restart PostgreSQL"
    " (on Amazon RDS: rds.logical_replication = 1 in the parameter group)"
)

PARTITIONED: Final = (
    "is partitioned, and wal2json does not say which table a row's partition belonged to when it was written"
)
PARTITIONED_CURE: Final = (
    "Set CDC_PLUGIN=pgoutput, which says it, and another CDC_NAME: a slot belongs to one plugin. That listener has "
    "what is committed once its slot is made; bring up to date by hand what was committed to this table before.\n"
    "Or name the partitions themselves in the route, and not what they belong to."
)

PRIMARY: Final = "Name the primary in DATABASE_URL, or several hosts and ?target_session_attrs=read-write."

REPLICATION: Final = "ALTER ROLE {role} REPLICATION;   (on Amazon RDS: GRANT rds_replication TO {role};)"

SENDERS: Final = (
    "Who has them: SELECT pid, application_name, client_addr, state FROM pg_stat_replication;\n"
    "Make room: ALTER SYSTEM SET max_wal_senders = 20;   then restart PostgreSQL"
)

SLOTS: Final = (
    "Drop a slot that nobody needs:\n"
    "  SELECT slot_name, active, restart_lsn FROM pg_replication_slots;\n"
    "  SELECT pg_drop_replication_slot('NAME');\n"
    "or make room: ALTER SYSTEM SET max_replication_slots = 20;   then restart PostgreSQL"
)

TLS: Final = (
    "Write ?sslmode=verify-full&sslrootcert=/path/of/ca.crt in DATABASE_URL, with the certificate of the "
    "authority that signed the server's, and the host as the server's certificate names it."
)
