#!/bin/sh
# Runs once, when the database is made: one role for each side, with what it needs and no more.
# Neither is a superuser. Workers write only what `python -m cdc_tasks connect-account`, `preferences` and `rotate-key`
# set, and the listener cannot even read a table: it sees the publication's tables, as they change.
set -eu
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set=listener_password="$LISTENER_PASSWORD" --set=worker_password="$WORKER_PASSWORD" <<'SQL'
CREATE ROLE cdc_listener LOGIN REPLICATION PASSWORD :'listener_password';
CREATE ROLE cdc_worker LOGIN PASSWORD :'worker_password';

REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO cdc_listener, cdc_worker;

-- Workers load tickets, users, accounts and the master tables.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO cdc_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO cdc_worker;
GRANT INSERT, UPDATE ON connected_accounts, notification_preferences TO cdc_worker;

-- What the routes of listener/routes.py ask for. Only the tables' owner may make and change it: after a change of
-- the routes `cdc-listener check` prints the SQL.
CREATE PUBLICATION cdc_tasks
    FOR TABLE ONLY tickets, ONLY users,
        ONLY departments, ONLY priorities, ONLY roles, ONLY statuses
    WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true,
        publish_generated_columns = stored);
SQL
