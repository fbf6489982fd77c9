-- The sample help desk on MySQL 8 and MariaDB 10.5 or later. May be run any number of times: it
-- creates what is missing and changes nothing else. Your own tables may have more columns; the tasks name only those below.

CREATE TABLE IF NOT EXISTS departments (
    id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name        varchar(100) NOT NULL UNIQUE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE IF NOT EXISTS roles (
    id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name        varchar(100) NOT NULL UNIQUE,
    description text
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE IF NOT EXISTS priorities (
    id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name        varchar(100) NOT NULL UNIQUE,
    `rank`      integer NOT NULL DEFAULT 0            -- higher is more urgent
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE IF NOT EXISTS statuses (
    id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name        varchar(100) NOT NULL UNIQUE,
    is_closed   boolean NOT NULL DEFAULT false
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE IF NOT EXISTS users (
    id            bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name          varchar(200) NOT NULL,
    email         varchar(254) NOT NULL UNIQUE,
    manager_id    bigint,
    department_id bigint,
    role_id       bigint,
    created_at    datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    FOREIGN KEY (manager_id) REFERENCES users (id) ON DELETE SET NULL,
    FOREIGN KEY (department_id) REFERENCES departments (id) ON DELETE SET NULL,
    FOREIGN KEY (role_id) REFERENCES roles (id) ON DELETE SET NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE IF NOT EXISTS tickets (
    id             bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    title          varchar(500) NOT NULL,
    description    text,
    status         varchar(100) NOT NULL DEFAULT 'open',
    priority       varchar(100) NOT NULL DEFAULT 'Normal',
    assigned_to_id bigint,
    created_by_id  bigint,
    created_at     datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    updated_at     datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    FOREIGN KEY (status) REFERENCES statuses (name) ON UPDATE CASCADE,
    FOREIGN KEY (priority) REFERENCES priorities (name) ON UPDATE CASCADE,
    FOREIGN KEY (assigned_to_id) REFERENCES users (id) ON DELETE SET NULL,
    FOREIGN KEY (created_by_id) REFERENCES users (id) ON DELETE SET NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Where a user wants messages. `secret` is encrypted with CDC_SECRET_KEY; add rows with `python -m cdc_tasks connect-account`.
CREATE TABLE IF NOT EXISTS connected_accounts (
    id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    user_id     bigint NOT NULL,
    service     varchar(50) NOT NULL,                 -- slack, teams
    address     varchar(200),                         -- Slack: channel or user id; NULL: found by the user's e-mail
    secret      text NOT NULL,                        -- Slack: bot token; Teams: webhook URL; encrypted
    is_active   boolean NOT NULL DEFAULT true,
    created_at  datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- Which messages a user wants, and when; set it with `python -m cdc_tasks preferences`. A user without a row gets all.
CREATE TABLE IF NOT EXISTS notification_preferences (
    user_id         bigint NOT NULL PRIMARY KEY,
    muted_kinds     varchar(1000) NOT NULL DEFAULT '',  -- comma-separated: new_ticket, ticket_updated, welcome, …
    manager_copies  boolean NOT NULL DEFAULT true,      -- the "Manager:" messages
    quiet_from      time,                               -- messages of the quiet hours are sent when they end
    quiet_until     time,
    time_zone       varchar(100) NOT NULL DEFAULT 'UTC',
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

INSERT IGNORE INTO statuses (name, is_closed) VALUES ('open', false), ('in progress', false), ('closed', true);
INSERT IGNORE INTO priorities (name, `rank`) VALUES ('Low', 10), ('Normal', 20), ('High', 30), ('Urgent', 40);
