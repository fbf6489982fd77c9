-- The application's own tables, in the database that the listener reads.
CREATE TABLE IF NOT EXISTS customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    credit numeric(10, 2) NOT NULL DEFAULT 0,
    password_hash text NOT NULL DEFAULT ''
);
ALTER TABLE customers REPLICA IDENTITY FULL;  -- or PostgreSQL does not log what a row was before
