"""The hints of errors and of `check`; `{role}` and `{database}` stand for the listener's."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "ACCEPT_GAP",
    "AFTER_GAP",
    "AUTHENTICATION",
    "CONNECTIONS",
    "DATABASE",
    "HIDDEN_COMMIT",
    "LOGICAL",
    "LOGIN",
    "NOT_LOCAL",
    "PARTITIONED",
    "PARTITIONED_HINT",
    "PG_HBA",
    "PLUGIN",
    "PLUGIN_LIBRARIES",
    "POOLER",
    "PRIMARY",
    "REPLICATION",
    "RESERVED",
    "RESTORED",
    "SENDERS",
    "SLOTS",
    "STUCK",
    "TLS",
    "TLS_OFF",
    "UPDATE",
    "quoted",
    "quoted_table",
]

HIDDEN_COMMIT: Final = (
    "A synchronous standby may have to confirm it: SHOW synchronous_standby_names; "
    "SELECT application_name, state, sync_state FROM pg_stat_replication; Start the standby, or take it out."
)

ACCEPT_GAP: Final = "To continue without the missing changes: python -m listener run --accept-gap"

CONNECTIONS: Final = (
    "See who uses them: SELECT pid, usename, application_name, client_addr, state FROM pg_stat_activity;\n"
    "Make room: ALTER SYSTEM SET max_connections = 200;   then restart PostgreSQL\n"
    "or lift a limit: ALTER ROLE {role} CONNECTION LIMIT -1; ALTER DATABASE {database} CONNECTION LIMIT -1;"
)

DATABASE: Final = "Check the database's name in DATABASE_URL, or: CREATE DATABASE {database};"

RESTORED: Final = (
    "Does DATABASE_URL name the right server? If so, update what depends on the restored rows. Then continue "
    "with what the database has committed after its replication slot's position: python -m listener run --accept-gap"
)

LOGICAL: Final = (
    "ALTER SYSTEM SET wal_level = 'logical';   then restart PostgreSQL"
    " (on Amazon RDS: rds.logical_replication = 1 in the parameter group)"
)

LOGIN: Final = (
    "If the role does not exist: CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';\n"
    "If it may not log in: ALTER ROLE {role} LOGIN;"
)

NOT_LOCAL: Final = "Is PostgreSQL running there? Check host and port in DATABASE_URL."

AUTHENTICATION: Final = (
    "Check user and password in DATABASE_URL (write each of : / ? # [ ] @ % in them as %XX), "
    "or set a new one: ALTER ROLE {role} PASSWORD '…';\n"
    "If the role does not exist: CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';"
)

PG_HBA: Final = (
    "If the server requires TLS, add ?sslmode=require to DATABASE_URL. If it requires a client certificate, add "
    "&sslcert=…&sslkey=…. Otherwise add this line to its pg_hba.conf:\n"
    "  host {database} {role} ADDRESS_OF_THE_LISTENER/32 scram-sha-256\n"
    "and run: SELECT pg_reload_conf();"
)

PLUGIN: Final = (
    "Install it on the database server (Debian, Ubuntu: apt install postgresql-VERSION-wal2json), "
    "or set CDC_PLUGIN=pgoutput, which comes with PostgreSQL."
)

PLUGIN_LIBRARIES: Final = (
    "ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'wal2json'; SELECT pg_reload_conf();"
)

POOLER: Final = (
    "Name the server itself in DATABASE_URL: replication does not work through a connection pooler."
)

PARTITIONED: Final = (
    "is partitioned, and wal2json does not show which table a row's partition belonged to "
    "when the row was written"
)
PARTITIONED_HINT: Final = (
    "Set CDC_PLUGIN=pgoutput, which sends it, and another CDC_NAME, because a slot belongs to one plugin. The new "
    "listener reads what is committed after its slot is created; update by hand what depends on this table's "
    "earlier changes.\n"
    "Or name the partitions in the route, and not the partitioned table."
)

PRIMARY: Final = "Name the primary in DATABASE_URL, or several hosts and ?target_session_attrs=read-write."

REPLICATION: Final = "ALTER ROLE {role} REPLICATION;   (on Amazon RDS: GRANT rds_replication TO {role};)"

SENDERS: Final = (
    "See who uses them: SELECT pid, application_name, client_addr, state FROM pg_stat_replication;\n"
    "Make room: ALTER SYSTEM SET max_wal_senders = 20;   then restart PostgreSQL"
)

SLOTS: Final = (
    "Drop a slot that is not needed:\n"
    "  SELECT slot_name, active, restart_lsn FROM pg_replication_slots;\n"
    "  SELECT pg_drop_replication_slot('NAME');\n"
    "or make room: ALTER SYSTEM SET max_replication_slots = 20;   then restart PostgreSQL"
)

UPDATE: Final = "Update cdc-tasks, and report this with the server's version."

STUCK: Final = (
    "Is it a value of more than 500 MB? Leave its column out: give the table's routes columns=, with "
    f"CDC_PLUGIN=pgoutput. Otherwise: {UPDATE}\n"
    "To continue without that transaction, first update by hand what depends on it. Then run:\n"
    "  SELECT pg_replication_slot_advance('{slot}', '{beyond}');\n"
    "and then: python -m listener run --accept-gap"
)

TLS: Final = (
    "Write ?sslmode=verify-full&sslrootcert=/path/of/ca.crt in DATABASE_URL, with the certificate of the "
    "authority that signed the server's certificate, and with the host name of the server's certificate."
)

TLS_OFF: Final = "Turn TLS on in the server (ssl = on), or take sslmode out of DATABASE_URL."


# --- Names in SQL for pasting -----------------------------------------------------------------------------

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


# Keywords that need quotes as a name: reserved according to `pg_get_keywords()` in any version.
_WORDS = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
returning right select session_user similar some symmetric system_user table tablesample then to trailing true
union unique user using variadic verbose when where window with
"""


RESERVED = frozenset(_WORDS.split())


def quoted(name: str) -> str:
    """Return the name, quoted if SQL would otherwise read it as another one."""
    if _PLAIN.fullmatch(name) and name not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: tuple[str, str]) -> str:
    """Return `schema.table`."""
    return ".".join(map(quoted, table))


AFTER_GAP: Final = "Send the existing rows of each table of a route: python -m listener backfill TABLE"
