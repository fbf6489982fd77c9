CREATE TABLE IF NOT EXISTS products (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    description text NOT NULL
);
INSERT INTO products (name, description)
SELECT 'Lamp no. ' || n, 'A lamp of the series ' || n % 7 FROM generate_series(1, 2000) n
WHERE NOT EXISTS (SELECT FROM products);
