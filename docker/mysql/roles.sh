#!/bin/sh
# Runs once, when the database is made: one account for each side, with what it needs and no more.
# Workers write only what `python -m cdc_tasks connect-account`, `preferences` and `rotate-key` set, and the listener
# cannot even read a table: it sees their names and columns, and the log.
set -eu

quoted() { # TEXT as SQL has it
  printf "'%s'" "$(printf %s "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/''/g")"
}

MYSQL_PWD="$MYSQL_ROOT_PASSWORD" mysql --user=root <<SQL
CREATE USER cdc_listener IDENTIFIED BY $(quoted "$LISTENER_PASSWORD");
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO cdc_listener;
GRANT REFERENCES ON $MYSQL_DATABASE.* TO cdc_listener;

-- Workers load tickets, users, accounts and the master tables.
CREATE USER cdc_worker IDENTIFIED BY $(quoted "$WORKER_PASSWORD");
GRANT SELECT ON $MYSQL_DATABASE.* TO cdc_worker;
GRANT INSERT, UPDATE ON $MYSQL_DATABASE.connected_accounts TO cdc_worker;
GRANT INSERT, UPDATE ON $MYSQL_DATABASE.notification_preferences TO cdc_worker;
SQL
