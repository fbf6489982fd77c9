"""PostgreSQL hosting services without superusers: detects them, and adapts hints to them.

`ALTER SYSTEM` needs a superuser, so such a hint is useless there. A host is recognized by a role that each of its
servers has. Sources, read on 2026-11-27: docs.aws.amazon.com (Performing logical replication for Amazon RDS for
PostgreSQL), cloud.google.com/sql/docs/postgres/replication/configure-logical-replication, learn.microsoft.com/azure
(Logical replication and logical decoding in Azure Database for PostgreSQL), supabase.com/docs/guides/database,
neon.com/docs/guides/logical-replication-neon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from listener.core.findings import Finding
from listener.postgres.client.connection import Connection, fetch

__all__ = ["Host", "find_host", "finding_in_words_of", "in_words_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host, and how settings and permissions are changed there."""

    name: str
    role: str  # exists on each of its servers
    setting: str  # how to set {name} = {value}; including a restart
    replication: str  # how to give {role} REPLICATION
    settings: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({})
    )  # those that are set differently


_GROUP: Final = "in the DB parameter group (Aurora: in the DB cluster parameter group)"

_HOSTS: Final = (
    Host(
        name="Amazon RDS or Aurora",
        role="rds_superuser",
        setting=f"{{name}} = {{value}} {_GROUP}; reboot if it is static",
        settings={"wal_level": f"rds.logical_replication = 1 {_GROUP}; then reboot"},
        replication="GRANT rds_replication TO {role};",
    ),
    Host(
        name="Google Cloud SQL",
        role="cloudsqlsuperuser",
        setting="the database flag {name} = {value} of the instance",
        settings={
            "wal_level": "the database flag cloudsql.logical_decoding = on of the instance, which restarts"
        },
        replication="ALTER USER {role} WITH REPLICATION;   as a user with cloudsqlsuperuser",
    ),
    Host(
        name="Azure Database for PostgreSQL",
        role="azure_pg_admin",
        setting="the server parameter {name} = {value} in the portal; restart if it is static",
        settings={
            "wal_level": "the server parameter wal_level = logical in the portal; then restart the server",
            "max_slot_wal_keep_size": "Azure does not let max_slot_wal_keep_size be changed. Let the listener run.",
        },
        replication="ALTER ROLE {role} WITH REPLICATION;   as the server's admin user",
    ),
    Host(
        name="Neon",
        role="neon_superuser",
        setting="ask Neon's support for {name} = {value}",
        settings={
            "wal_level": "enable Logical Replication in the settings of the project; this restarts all computes, and "
            "cannot be undone"
        },
        replication="Create the role in Neon's console, CLI or API: a role created with SQL cannot get REPLICATION.",
    ),
    Host(
        name="Supabase",
        role="supabase_admin",
        setting="supabase --experimental --project-ref REF postgres-config update --config {name}={value}",
        replication="ALTER ROLE {role} REPLICATION;   as postgres, from PostgreSQL 17 on. Before 17, let the listener "
        "be the role postgres.",
    ),
)

_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
_SETTING: Final = re.compile(
    r"ALTER SYSTEM SET (?P<name>\w+) = (?P<value>'[^']*'|[^;]+?);"
    r"(?: SELECT pg_reload_conf\(\);|   then restart PostgreSQL)?"
)
_REPLICATION: Final = re.compile(r'ALTER ROLE (?P<role>"(?:[^"]|"")*"|\S+) REPLICATION;')
# General remarks in hints that are not needed if the host is known.
_ASIDE: Final = re.compile(r" +\(on Amazon RDS: [^)]*\)")


def find_host(connection: Connection) -> Host | None:
    """Return the host of the server; None if it is unknown."""
    roles = {role for (role,) in fetch(connection, _ROLES, [[host.role for host in _HOSTS]])}
    return next((host for host in _HOSTS if host.role in roles), None)


def in_words_of(host: Host | None, hint: str) -> str:
    """Return a hint with this host's replacement for `ALTER SYSTEM` and `ALTER ROLE`."""
    if host is None:
        return hint

    def setting(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        value = value.strip("'") if value.count("'") == 2 else value  # and not a list of strings
        return host.settings.get(name, host.setting).format(name=name, value=value)

    def replication(found: re.Match[str]) -> str:
        return host.replication.format(role=found["role"])

    return _REPLICATION.sub(replication, _SETTING.sub(setting, _ASIDE.sub("", hint)))


def finding_in_words_of(host: Host | None, finding: Finding) -> Finding:
    """Return a finding with its hint adapted to the host."""
    return replace(finding, hint=in_words_of(host, finding.hint)) if host and finding.hint else finding
