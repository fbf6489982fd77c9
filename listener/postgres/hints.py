"""What mends a server, for errors and for `check` alike; `{role}`, `{database}` stand for the listener's."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "ACCEPT_GAP",
    "AUTHENTICATION",
    "CONNECTIONS",
    "DATABASE",
    "LOGICAL",
    "LOGIN",
    "NOT_LOCAL",
    "PARTITIONED",
    "PARTITIONED_CURE",
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

ACCEPT_GAP: Final = "To go on without what is missing: python -m listener run --accept-gap"

CONNECTIONS: Final = (
    "Who has them: SELECT pid, usename, application_name, client_addr, state FROM pg_stat_activity;\n"
    "Make room: ALTER SYSTEM SET max_connections = 200;   then restart PostgreSQL\n"
    "or lift a limit: ALTER ROLE {role} CONNECTION LIMIT -1; ALTER DATABASE {database} CONNECTION LIMIT -1;"
)

DATABASE: Final = "Check the database's name in DATABASE_URL, or: CREATE DATABASE {database};"

RESTORED: Final = (
    "Does DATABASE_URL name the right server? If so, bring what depends on the restored rows up to date, and go on with"
    " what the database committed behind its replication slot: python -m listener run --accept-gap"
)

LOGICAL: Final = (
    "ALTER SYSTEM SET wal_level = 'logical';   then restart PostgreSQL"
    " (on Amazon RDS: rds.logical_replication = 1 in the parameter group)"
)

LOGIN: Final = (
    "If the role is not there: CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';\n"
    "If it may not log in: ALTER ROLE {role} LOGIN;"
)

NOT_LOCAL: Final = "Is PostgreSQL running there? Check host and port in DATABASE_URL."

AUTHENTICATION: Final = (
    "Check user and password in DATABASE_URL (write each of : / ? # [ ] @ % in them as %XX), "
    "or set a new one: ALTER ROLE {role} PASSWORD '…';\n"
    "If the role is not there: CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';"
)

PG_HBA: Final = (
    "Add ?sslmode=require to DATABASE_URL if the server wants TLS, and &sslcert=…&sslkey=… if it wants a "
    "certificate of the listener's; else add to its pg_hba.conf the line\n"
    "  host {database} {role} ADDRESS_OF_THE_LISTENER/32 scram-sha-256\n"
    "and run: SELECT pg_reload_conf();"
)

PLUGIN: Final = (
    "Install it on the database server (Debian, Ubuntu: apt install postgresql-VERSION-wal2json), "
    "or set CDC_PLUGIN=pgoutput, which is always there."
)

PLUGIN_LIBRARIES: Final = (
    "ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'wal2json'; SELECT pg_reload_conf();"
)

POOLER: Final = "Name the server itself in DATABASE_URL: replication does not go through a connection pooler."

PARTITIONED: Final = (
    "is partitioned, and wal2json does not say which table a row's partition belonged to when it was written"
)
PARTITIONED_HINT: Final = (
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

UPDATE: Final = "Update cdc-tasks, and report this with the server's version."

STUCK: Final = (
    "A value of more than 500 MB? Leave its column out: give the table's routes columns=, with CDC_PLUGIN=pgoutput. "
    f"Else: {UPDATE}\n"
    "To go on without that transaction, once what depends on it was brought up to date by hand:\n"
    "  SELECT pg_replication_slot_advance('{slot}', '{beyond}');\n"
    "and then: python -m listener run --accept-gap"
)

TLS: Final = (
    "Write ?sslmode=verify-full&sslrootcert=/path/of/ca.crt in DATABASE_URL, with the certificate of the "
    "authority that signed the server's, and the host as the server's certificate names it."
)

TLS_OFF: Final = "Turn TLS on in the server (ssl = on), or take sslmode out of DATABASE_URL."


# --- Names in SQL that a person pastes ------------------------------------------------------------------

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


# Keywords that are no name without quotes: those that `pg_get_keywords()` calls reserved, of all versions.
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
    """Quote a name where SQL would read it as another one."""
    if _PLAIN.fullmatch(name) and name not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def quoted_table(table: tuple[str, str]) -> str:
    """Return `schema.table`."""
    return ".".join(map(quoted, table))
