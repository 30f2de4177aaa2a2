"""The tables that every rule's example stands on, with rows: what the file at hand did not make."""

GIVEN = """\
CREATE TABLE customers (id bigint PRIMARY KEY, email text, note varchar(40));
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id bigint,
    status text,
    code varchar(40),
    total numeric(10, 2),
    paid_at timestamptz
);
INSERT INTO customers SELECT n, 'c' || n, 'n' FROM generate_series(1, 500) AS n;
INSERT INTO orders SELECT n, n, 'open', 'A' || n, n, now() FROM generate_series(1, 500) AS n;
"""
