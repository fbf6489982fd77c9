"""What mends a server, for errors and for `check` alike; `{role}` stands for the listener's role."""

from __future__ import annotations

from typing import Final

__all__ = ["ACCEPT_GAP", "LOGICAL", "PRIMARY", "REPLICATION", "RESTORED", "SENDERS", "SLOTS", "TLS"]

ACCEPT_GAP: Final = "To go on without what is missing: python -m listener run --accept-gap"

RESTORED: Final = (
    "Does DATABASE_URL name the right server? If so, bring what depends on the restored rows up to date, and go on with"
    " what the database committed behind its replication slot: python -m listener run --accept-gap"
)

LOGICAL: Final = (
    "ALTER SYSTEM SET wal_level = 'logical';   then restart PostgreSQL"
    " (on Amazon RDS: rds.logical_replication = 1 in the parameter group)"
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
