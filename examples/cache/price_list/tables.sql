CREATE TABLE IF NOT EXISTS products (
    id integer PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL,
    on_sale boolean NOT NULL DEFAULT false
);
INSERT INTO products (id, name, price)
SELECT n, 'Lamp no. ' || n, n FROM generate_series(1, 200) n
WHERE NOT EXISTS (SELECT FROM products);
