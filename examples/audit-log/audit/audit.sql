-- In a database of its own: a log in the same one could be audited itself, without end.
CREATE TABLE IF NOT EXISTS audit_log (
    change_id text PRIMARY KEY,  -- no other change ever has it, so a change that comes twice is there once
    committed_at timestamptz NOT NULL,
    table_name text NOT NULL,
    event text NOT NULL,
    row_id bigint,  -- null: TRUNCATE, which is of all rows
    before jsonb,
    after jsonb,
    context jsonb  -- who, in which request; null: someone with SQL
);
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is only appended to';
END $$;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    EXECUTE FUNCTION refuse();
