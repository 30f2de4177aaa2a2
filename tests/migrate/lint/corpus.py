"""Hazards as people write them, each with its safe twin: what the rule must find, and what no rule may."""

# ruff: noqa: E501

from dataclasses import dataclass

from tollbook.migrate.lint.examples import GIVEN

BEFORE = f"""{GIVEN}
CREATE TABLE lines (id bigint PRIMARY KEY, order_id bigint NOT NULL, sku text NOT NULL, number integer);
CREATE INDEX lines_order_id ON lines (order_id);
CREATE INDEX lines_sku ON lines (sku);
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE moods (id bigint PRIMARY KEY, mood mood, seen timestamp, size varchar(10), data json);
CREATE TABLE visits (id bigint, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE visits_2025 PARTITION OF visits FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE visits_2026 (id bigint, at date NOT NULL, CHECK (at >= '2026-01-01' AND at < '2027-01-01'));
CREATE TABLE visits_2027 (id bigint, at date NOT NULL);
CREATE VIEW open_orders AS SELECT id, paid_at FROM orders;
CREATE MATERIALIZED VIEW sums AS SELECT note, count(*) AS total FROM customers GROUP BY note;
CREATE UNIQUE INDEX sums_note ON sums (note);
CREATE SEQUENCE receipt_numbers;
CREATE SCHEMA archive CREATE TABLE orders_2020 (id bigint PRIMARY KEY);
CREATE DOMAIN positive AS integer;
CREATE FUNCTION net(amount numeric) RETURNS numeric LANGUAGE sql SET search_path = '' AS 'SELECT amount';
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER lines_audit BEFORE UPDATE ON lines FOR EACH ROW EXECUTE FUNCTION audit();
ALTER TABLE lines ADD CONSTRAINT lines_number_positive CHECK (number > 0) NOT VALID;
ALTER TABLE moods ADD CONSTRAINT moods_mood_there CHECK (mood IS NOT NULL);
CREATE TABLE tickets (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, seats int NOT NULL DEFAULT 1);
CREATE UNIQUE INDEX customers_email ON customers (email);
CREATE TABLE secrets (id bigint PRIMARY KEY);
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secrets USING (true);
"""


@dataclass(frozen=True)
class Case:
    """What is wrong, which rule says so, and how it is done without harm ("" where there is no such way)."""

    rule: str
    hazard: str
    twin: str = ""


LOSS = [
    Case("drop-table", "DROP TABLE lines", "ALTER TABLE lines ADD COLUMN note text"),
    Case("drop-table", "DROP TABLE IF EXISTS public.lines, moods", "DROP TABLE IF EXISTS pg_temp.lines"),
    Case("drop-table", "DROP TABLE archive.orders_2020"),
    Case("drop-table", "CREATE TABLE x (id bigint PRIMARY KEY); DROP TABLE moods",
         "CREATE TABLE x (id bigint PRIMARY KEY); DROP TABLE x"),
    Case("drop-table", "DROP TABLE visits_2025", "ALTER TABLE visits DETACH PARTITION visits_2025 CONCURRENTLY"),
    Case("drop-column", "ALTER TABLE orders DROP code", "ALTER TABLE orders ALTER code DROP DEFAULT"),
    Case("drop-column", "ALTER TABLE ONLY orders DROP COLUMN IF EXISTS code, DROP COLUMN total",
         "ALTER TABLE orders ADD COLUMN x int; ALTER TABLE orders DROP COLUMN x"),
    Case("drop-schema", "DROP SCHEMA archive CASCADE", "CREATE SCHEMA draft; DROP SCHEMA draft"),
    Case("drop-schema", "DROP SCHEMA IF EXISTS archive"),
    Case("drop-database", "DROP DATABASE archive"),
    Case("drop-view", "DROP VIEW open_orders",
         "CREATE OR REPLACE VIEW open_orders AS SELECT id, paid_at, customer_id FROM orders"),
    Case("drop-view", "DROP MATERIALIZED VIEW sums", "CREATE VIEW v AS SELECT 1 AS one; DROP VIEW v"),
    Case("drop-sequence", "DROP SEQUENCE receipt_numbers", "CREATE SEQUENCE s; DROP SEQUENCE s"),
    Case("drop-function", "DROP FUNCTION net(numeric)",
         "CREATE OR REPLACE FUNCTION net(amount numeric) RETURNS numeric LANGUAGE sql SET search_path = '' "
         "AS 'SELECT amount * 0.8'"),
    Case("drop-type", "DROP TYPE mood CASCADE", "CREATE TYPE hue AS ENUM ('red'); DROP TYPE hue"),
    Case("drop-type", "DROP DOMAIN positive", "ALTER DOMAIN positive SET DEFAULT 1"),
    Case("drop-extension", "DROP EXTENSION hstore", "CREATE EXTENSION IF NOT EXISTS hstore"),
    Case("drop-constraint", "ALTER TABLE lines DROP CONSTRAINT lines_number_positive",
         "ALTER TABLE lines VALIDATE CONSTRAINT lines_number_positive"),
    Case("drop-not-null", "ALTER TABLE lines ALTER sku DROP NOT NULL", "ALTER TABLE lines ALTER sku SET DEFAULT ''"),
    Case("drop-trigger", "DROP TRIGGER lines_audit ON lines",
         "CREATE OR REPLACE TRIGGER lines_audit BEFORE UPDATE ON lines FOR EACH ROW EXECUTE FUNCTION audit()"),
    Case("drop-owned", "DROP OWNED BY CURRENT_USER"),
    Case("truncate", "TRUNCATE moods", "CREATE TEMP TABLE t (id int); TRUNCATE t"),
    Case("truncate", "TRUNCATE TABLE lines, moods RESTART IDENTITY", "DELETE FROM moods WHERE id = 7"),
    Case("delete-without-where", "DELETE FROM lines", "DELETE FROM lines WHERE order_id = 5"),
    Case("delete-without-where", "DELETE FROM ONLY lines RETURNING id",
         "DELETE FROM lines USING orders WHERE orders.id = lines.order_id AND orders.status = 'void'"),
    Case("update-without-where", "UPDATE lines SET number = 1", "UPDATE lines SET number = 1 WHERE number IS NULL"),
    Case("update-without-where", "UPDATE lines AS l SET number = number + 1",
         "UPDATE lines SET number = 2 WHERE id IN (1, 2)"),
    Case("cascade", "ALTER TABLE lines DROP COLUMN sku CASCADE"),
    Case("cascade", "DROP VIEW open_orders CASCADE", "CREATE VIEW v AS SELECT 1 AS one; DROP VIEW v CASCADE"),
    Case("cascade", "TRUNCATE orders CASCADE", "CREATE TABLE t (id int PRIMARY KEY); TRUNCATE t CASCADE"),
    Case("disable-rls", "ALTER TABLE secrets DISABLE ROW LEVEL SECURITY", "ALTER TABLE secrets FORCE ROW LEVEL SECURITY"),
    Case("disable-rls", "DROP POLICY own ON secrets", "ALTER POLICY own ON secrets USING (id > 0)"),
    Case("system-catalog", "UPDATE pg_catalog.pg_class SET reltuples = 0 WHERE relname = 'orders'",
         "SELECT count(*) FROM pg_class"),
    Case("system-catalog", "INSERT INTO pg_enum (oid) SELECT 1", "ALTER TYPE mood ADD VALUE 'calm'"),
]  # fmt: skip

TYPES = [
    Case("change-column-type", "ALTER TABLE lines ALTER number TYPE bigint", "ALTER TABLE moods ALTER size TYPE text"),
    Case("change-column-type", "ALTER TABLE orders ALTER id TYPE numeric", "ALTER TABLE moods ALTER size TYPE varchar(30)"),
    Case("change-column-type", "ALTER TABLE orders ALTER status TYPE mood USING status::mood",
         "ALTER TABLE orders ALTER status TYPE varchar USING status::varchar"),
    Case("change-column-type", "ALTER TABLE moods ALTER data TYPE jsonb", "ALTER TABLE orders ALTER total TYPE numeric(14, 2)"),
    Case("change-column-type", "ALTER TABLE moods ALTER seen TYPE timestamptz",
         "ALTER TABLE orders ALTER total TYPE numeric"),
    Case("change-column-type", "ALTER TABLE orders ALTER total TYPE numeric(14, 4)",
         "ALTER TABLE orders ALTER code TYPE text, ALTER total TYPE numeric(20, 2)"),
    Case("change-column-type", "ALTER TABLE moods ALTER size TYPE text USING lower(size)",
         "ALTER TABLE moods ALTER size TYPE text USING size::text"),
    Case("change-column-type", "ALTER TABLE moods ALTER mood TYPE text",
         "CREATE TABLE x (id bigint PRIMARY KEY, a int); ALTER TABLE x ALTER a TYPE bigint"),
    Case("narrow-column-type", "ALTER TABLE orders ALTER code TYPE varchar(10)", "ALTER TABLE orders ALTER code TYPE varchar(50)"),
    Case("narrow-column-type", "ALTER TABLE lines ALTER number TYPE smallint"),
    Case("narrow-column-type", "ALTER TABLE orders ALTER paid_at TYPE date"),
    Case("narrow-column-type", "ALTER TABLE orders ALTER total TYPE integer"),
    Case("timestamp-without-zone", "CREATE TABLE x (id bigint PRIMARY KEY, at timestamp)",
         "CREATE TABLE x (id bigint PRIMARY KEY, at timestamptz)"),
    Case("timestamp-without-zone", "ALTER TABLE lines ADD COLUMN at timestamp(3)", "ALTER TABLE lines ADD COLUMN at timestamptz(3)"),
    Case("int-primary-key", "CREATE TABLE x (id int PRIMARY KEY)", "CREATE TABLE x (id bigint PRIMARY KEY)"),
    Case("int-primary-key", "CREATE TABLE x (id serial, PRIMARY KEY (id))",
         "CREATE TABLE x (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number integer)"),
    Case("int-primary-key", "CREATE TABLE x (id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
         "CREATE TABLE x (a int, b int, PRIMARY KEY (a, b))"),
    Case("char-type", "CREATE TABLE x (id bigint PRIMARY KEY, code char(3))",
         "CREATE TABLE x (id bigint PRIMARY KEY, code text CHECK (length(code) = 3))"),
    Case("json-type", "ALTER TABLE lines ADD COLUMN extra json", "ALTER TABLE lines ADD COLUMN extra jsonb"),
    Case("money-type", "CREATE TABLE x (id bigint PRIMARY KEY, price money)",
         "CREATE TABLE x (id bigint PRIMARY KEY, price numeric(19, 4))"),
    Case("money-type", "CREATE TABLE x (id bigint PRIMARY KEY, unit_price float)",
         "CREATE TABLE x (id bigint PRIMARY KEY, latitude float)"),
    Case("serial-type", "CREATE TABLE x (id bigserial PRIMARY KEY)",
         "CREATE TABLE x (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY)"),
]  # fmt: skip

LOCKS = [
    Case("set-not-null", "ALTER TABLE orders ALTER customer_id SET NOT NULL", "ALTER TABLE moods ALTER mood SET NOT NULL"),
    Case("set-not-null", "ALTER TABLE orders ADD COLUMN x int, ALTER status SET NOT NULL",
         "ALTER TABLE lines ALTER sku SET NOT NULL"),
    Case("add-column-not-null", "ALTER TABLE lines ADD COLUMN x int NOT NULL", "ALTER TABLE lines ADD COLUMN x int NOT NULL DEFAULT 0"),
    Case("add-column-not-null", "ALTER TABLE lines ADD COLUMN x uuid PRIMARY KEY", "ALTER TABLE lines ADD COLUMN x int"),
    Case("add-column-volatile-default", "ALTER TABLE lines ADD COLUMN x uuid DEFAULT gen_random_uuid()",
         "ALTER TABLE lines ADD COLUMN x timestamptz DEFAULT now()"),
    Case("add-column-volatile-default", "ALTER TABLE lines ADD COLUMN x float NOT NULL DEFAULT random() * 2",
         "ALTER TABLE lines ADD COLUMN x timestamptz DEFAULT CURRENT_TIMESTAMP"),
    Case("add-column-volatile-default", "ALTER TABLE lines ADD COLUMN x timestamptz DEFAULT clock_timestamp()",
         "ALTER TABLE lines ADD COLUMN x jsonb NOT NULL DEFAULT '{}'::jsonb"),
    Case("add-column-numbered", "ALTER TABLE lines ADD COLUMN x bigserial", "ALTER TABLE lines ADD COLUMN x bigint"),
    Case("add-column-numbered", "ALTER TABLE lines ADD COLUMN x bigint GENERATED BY DEFAULT AS IDENTITY"),
    Case("add-column-domain", "CREATE DOMAIN age AS int CHECK (VALUE > 0); ALTER TABLE lines ADD COLUMN x age",
         "CREATE DOMAIN age AS int; ALTER TABLE lines ADD COLUMN x age"),
    Case("add-column-generated", "ALTER TABLE lines ADD COLUMN x int GENERATED ALWAYS AS (number + 1) STORED",
         "ALTER TABLE lines ADD COLUMN x int GENERATED ALWAYS AS (number + 1) VIRTUAL"),
    Case("add-foreign-key", "ALTER TABLE lines ADD FOREIGN KEY (order_id) REFERENCES orders (id)",
         "ALTER TABLE lines ADD CONSTRAINT k FOREIGN KEY (order_id) REFERENCES orders (id) NOT VALID"),
    Case("add-foreign-key", "ALTER TABLE lines ADD COLUMN c bigint DEFAULT 1 REFERENCES customers",
         "ALTER TABLE lines ADD COLUMN c bigint REFERENCES customers"),
    Case("add-check", "ALTER TABLE lines ADD CHECK (number < 1000)",
         "ALTER TABLE lines ADD CONSTRAINT small CHECK (number < 1000) NOT VALID"),
    Case("add-check", "ALTER TABLE lines ADD COLUMN x int CHECK (x > 0)",
         "CREATE TABLE x (id bigint PRIMARY KEY CHECK (id > 0))"),
    Case("add-check", "ALTER TABLE orders ADD CONSTRAINT there NOT NULL status",
         "ALTER TABLE orders ADD CONSTRAINT there NOT NULL status NOT VALID"),
    Case("validate-in-same-transaction",
         "ALTER TABLE lines ADD CONSTRAINT k FOREIGN KEY (order_id) REFERENCES orders NOT VALID; "
         "ALTER TABLE lines VALIDATE CONSTRAINT k",
         "ALTER TABLE lines VALIDATE CONSTRAINT lines_number_positive"),
    Case("create-index", "CREATE INDEX i ON lines (number)", "CREATE INDEX CONCURRENTLY i1 ON lines (number)"),
    Case("create-index", "CREATE UNIQUE INDEX IF NOT EXISTS i ON public.lines USING btree (lower(sku)) WHERE number > 1",
         "CREATE TABLE x (id bigint PRIMARY KEY, a int); CREATE INDEX i ON x (a)"),
    Case("drop-index", "DROP INDEX lines_sku", "DROP INDEX CONCURRENTLY lines_sku"),
    Case("drop-index", "DROP INDEX IF EXISTS public.lines_sku, lines_order_id",
         "CREATE TABLE x (id bigint PRIMARY KEY, a int); CREATE INDEX i ON x (a); DROP INDEX i"),
    Case("reindex", "REINDEX TABLE lines", "REINDEX TABLE CONCURRENTLY lines"),
    Case("reindex", "REINDEX INDEX lines_order_id", "REINDEX INDEX CONCURRENTLY lines_order_id"),
    Case("add-unique", "ALTER TABLE customers ADD UNIQUE (email)",
         "ALTER TABLE customers ADD CONSTRAINT u UNIQUE USING INDEX customers_email"),
    Case("add-unique", "ALTER TABLE lines ADD COLUMN x int UNIQUE", "CREATE TABLE x (id bigint PRIMARY KEY, a int UNIQUE)"),
    Case("add-primary-key", "ALTER TABLE visits_2027 ADD PRIMARY KEY (id, at)",
         "CREATE TABLE x (id bigint); ALTER TABLE x ADD PRIMARY KEY (id)"),
    Case("add-exclusion", "ALTER TABLE lines ADD EXCLUDE (sku WITH =)",
         "CREATE TABLE x (id bigint PRIMARY KEY, sku text, EXCLUDE (sku WITH =))"),
    Case("attach-partition", "ALTER TABLE visits ATTACH PARTITION visits_2027 FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
         "ALTER TABLE visits ATTACH PARTITION visits_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"),
    Case("detach-partition", "ALTER TABLE visits DETACH PARTITION visits_2025",
         "CREATE TABLE visits_2028 PARTITION OF visits FOR VALUES FROM ('2028-01-01') TO ('2029-01-01')"),
    Case("create-trigger", "CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION audit()",
         "CREATE TABLE x (id bigint PRIMARY KEY); "
         "CREATE TRIGGER t AFTER INSERT ON x FOR EACH ROW EXECUTE FUNCTION audit()"),
    Case("cluster", "CLUSTER lines USING lines_pkey", "ANALYZE lines"),
    Case("cluster", "VACUUM FULL lines", "VACUUM (ANALYZE) lines"),
    Case("cluster", "VACUUM (FULL, ANALYZE) lines, orders"),
    Case("lock-table", "LOCK TABLE lines", "LOCK TABLE lines IN ROW EXCLUSIVE MODE"),
    Case("lock-table", "LOCK TABLE ONLY lines IN SHARE MODE NOWAIT"),
    Case("set-logged", "ALTER TABLE lines SET UNLOGGED", "ALTER TABLE lines SET (fillfactor = 90)"),
    Case("move-to-tablespace", "ALTER TABLE lines SET TABLESPACE fast"),
    Case("refresh-view", "REFRESH MATERIALIZED VIEW sums", "REFRESH MATERIALIZED VIEW CONCURRENTLY sums"),
    Case("domain-constraint", "ALTER DOMAIN positive ADD CHECK (VALUE > 0)",
         "ALTER DOMAIN positive ADD CONSTRAINT p CHECK (VALUE > 0) NOT VALID"),
    Case("domain-constraint", "ALTER DOMAIN positive SET NOT NULL", "ALTER DOMAIN positive DROP NOT NULL"),
    Case("backfill-with-ddl", "ALTER TABLE lines ADD COLUMN x int; UPDATE lines SET x = number WHERE number > 5",
         "ALTER TABLE lines ADD COLUMN x int; UPDATE lines SET x = 3 WHERE id = 1"),
    Case("backfill-with-ddl", "ALTER TABLE orders ADD COLUMN x int; INSERT INTO lines (id, order_id, sku) SELECT id, id, '' FROM orders",
         "CREATE TABLE x (id bigint PRIMARY KEY); INSERT INTO x (id) SELECT id FROM orders"),
    Case("many-tables", "ALTER TABLE lines ADD COLUMN x int; ALTER TABLE orders ADD COLUMN x int",
         "ALTER TABLE lines ADD COLUMN x int; ALTER TABLE lines ADD COLUMN y int"),
    Case("lock-timeout-off", "SET lock_timeout = 0", "SET LOCAL lock_timeout = '2s'"),
    Case("lock-timeout-off", "SET LOCAL lock_timeout TO '0ms'", "SET statement_timeout = '10min'"),
    Case("lock-timeout-off", "RESET lock_timeout", "RESET search_path"),
    Case("lock-timeout-off", "SELECT set_config('lock_timeout', '0', false)", "SELECT set_config('lock_timeout', '3s', true)"),
]  # fmt: skip

BREAKS = [
    Case("rename-table", "ALTER TABLE lines RENAME TO order_lines", "CREATE VIEW order_lines AS SELECT id, sku FROM lines"),
    Case("rename-table", "ALTER VIEW open_orders RENAME TO orders_open",
         "CREATE TABLE x (id bigint PRIMARY KEY); ALTER TABLE x RENAME TO y"),
    Case("rename-column", "ALTER TABLE lines RENAME sku TO article", "ALTER INDEX lines_sku RENAME TO lines_by_sku"),
    Case("rename-column", "ALTER TABLE lines ADD COLUMN a int; ALTER TABLE lines RENAME number TO b",
         "ALTER TABLE lines ADD COLUMN a int; ALTER TABLE lines RENAME a TO b"),
    Case("rename-schema", "ALTER SCHEMA archive RENAME TO attic", "CREATE SCHEMA a; ALTER SCHEMA a RENAME TO b"),
    Case("rename-schema", "ALTER TYPE mood RENAME TO temper"),
    Case("rename-schema", "ALTER FUNCTION net(numeric) RENAME TO netto"),
    Case("move-to-schema", "ALTER TABLE lines SET SCHEMA archive",
         "CREATE TABLE x (id bigint PRIMARY KEY); ALTER TABLE x SET SCHEMA archive"),
    Case("replace-view", "CREATE OR REPLACE VIEW open_orders AS SELECT paid_at, id FROM orders",
         "CREATE OR REPLACE VIEW open_orders AS SELECT id, paid_at, customer_id FROM orders"),
    Case("replace-view", "CREATE OR REPLACE VIEW open_orders AS SELECT id FROM orders"),
    Case("replace-function",
         "CREATE OR REPLACE FUNCTION net(amount numeric) RETURNS text LANGUAGE sql SET search_path = '' AS 'SELECT 1::text'",
         "CREATE OR REPLACE FUNCTION net(amount numeric) RETURNS numeric LANGUAGE sql SET search_path = '' AS 'SELECT 1.0'"),
    Case("replace-function",
         "CREATE OR REPLACE FUNCTION net(sum numeric) RETURNS numeric LANGUAGE sql SET search_path = '' AS 'SELECT 1.0'"),
    Case("replace-function",
         "CREATE OR REPLACE FUNCTION net(amount numeric, rate numeric DEFAULT 1) RETURNS numeric LANGUAGE sql "
         "SET search_path = '' AS 'SELECT 1.0'",
         "CREATE FUNCTION net_at(amount numeric, rate numeric) RETURNS numeric LANGUAGE sql SET search_path = '' "
         "AS 'SELECT 1.0'"),
    Case("enum-value-used", "ALTER TYPE mood ADD VALUE 'calm'; INSERT INTO moods (id, mood) VALUES (1, 'calm')",
         "CREATE TYPE hue AS ENUM ('red'); ALTER TYPE hue ADD VALUE 'blue'; SELECT 'blue'::hue"),
    Case("rename-enum-value", "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'blue'"),
    Case("reserved-name", 'CREATE TABLE "order" (id bigint PRIMARY KEY)', "CREATE TABLE purchases (id bigint PRIMARY KEY)"),
    Case("reserved-name", 'ALTER TABLE lines ADD COLUMN "user" text', "ALTER TABLE lines ADD COLUMN user_name text"),
    Case("reserved-name", 'ALTER TABLE lines RENAME COLUMN sku TO "table"'),
    Case("reserved-name", 'CREATE TABLE "Bills" (id bigint PRIMARY KEY)', "CREATE TABLE bills (name text PRIMARY KEY, value int)"),
    Case("long-name", f"CREATE TABLE {'x' * 70} (id bigint PRIMARY KEY)", f"CREATE TABLE {'x' * 63} (id bigint PRIMARY KEY)"),
    Case("function-search-path",
         "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
         "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT 1'"),
    Case("function-search-path", "CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN END'",
         "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT a; END"),
    Case("disable-trigger", "ALTER TABLE lines DISABLE TRIGGER lines_audit", "ALTER TABLE lines ENABLE TRIGGER lines_audit"),
    Case("disable-trigger", "ALTER TABLE lines DISABLE TRIGGER ALL; DELETE FROM lines WHERE id = 1; "
         "ALTER TABLE lines ENABLE TRIGGER ALL"),
    Case("disable-trigger", "SET session_replication_role = replica"),
    Case("rls-without-policy", "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
         "ALTER TABLE orders ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON orders USING (id > 0)"),
    Case("never-validated", "ALTER TABLE orders ADD CONSTRAINT c CHECK (total > 0) NOT VALID"),
]  # fmt: skip

CARE = [
    Case("unlogged-table", "CREATE UNLOGGED TABLE x (id bigint PRIMARY KEY)", "CREATE TEMP TABLE x (id bigint PRIMARY KEY)"),
    Case("grant-to-public", "GRANT ALL ON orders TO PUBLIC", "GRANT SELECT ON orders TO CURRENT_USER"),
    Case("grant-to-public", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "REVOKE ALL ON orders FROM PUBLIC"),
    Case("grant-to-public", "GRANT EXECUTE ON FUNCTION net(numeric) TO PUBLIC"),
    Case("alter-system", "ALTER SYSTEM SET work_mem = '1GB'", "SET LOCAL work_mem = '64MB'"),
    Case("password-in-file", "CREATE ROLE r LOGIN PASSWORD 'x'", "COMMENT ON TABLE orders IS 'the password is not here'"),
    Case("password-in-file", "ALTER USER r WITH ENCRYPTED PASSWORD 'x'"),
    Case("autovacuum-off", "ALTER TABLE lines SET (autovacuum_enabled = off)", "ALTER TABLE lines SET (autovacuum_enabled = on)"),
    Case("compare-with-null", "DELETE FROM lines WHERE number = NULL", "DELETE FROM lines WHERE number IS NULL"),
    Case("compare-with-null", "UPDATE lines SET number = 1 WHERE sku <> NULL", "UPDATE lines SET number = NULL WHERE id = 1"),
    Case("insert-without-columns", "INSERT INTO customers VALUES (900, 'a', 'b')",
         "INSERT INTO customers (id, email) VALUES (900, 'a')"),
    Case("view-of-star", "CREATE VIEW w AS SELECT * FROM lines", "CREATE VIEW w AS SELECT id, count(*) AS n FROM lines GROUP BY id"),
    Case("redundant-index", "CREATE INDEX CONCURRENTLY i ON lines (sku)", "CREATE INDEX CONCURRENTLY i2 ON lines (sku, number)"),
    Case("foreign-key-without-index", "CREATE TABLE x (id bigint PRIMARY KEY, c bigint REFERENCES customers)",
         "CREATE TABLE x (id bigint PRIMARY KEY, c bigint REFERENCES customers); CREATE INDEX x_c ON x (c)"),
    Case("foreign-key-without-index", "CREATE TABLE x (a bigint, c bigint REFERENCES customers, PRIMARY KEY (a, c))",
         "CREATE TABLE x (a bigint, c bigint REFERENCES customers, PRIMARY KEY (c, a))"),
    Case("no-primary-key", "CREATE TABLE x (a int, b int)", "CREATE TABLE x (a int PRIMARY KEY)"),
    Case("create-rule", "CREATE RULE r AS ON INSERT TO lines DO ALSO NOTHING"),
    Case("index-if-not-exists", "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON lines (number)",
         "CREATE INDEX CONCURRENTLY i3 ON lines (number)"),
    Case("half-applied", "ALTER TABLE lines ADD COLUMN x int; CREATE INDEX CONCURRENTLY i ON lines (number)",
         "CREATE INDEX CONCURRENTLY i4 ON lines (number)"),
    Case("opaque-sql", "DO $$BEGIN EXECUTE current_setting('app.sql'); END$$", "DO $$BEGIN PERFORM 1; END$$"),
    Case("opaque-sql", "DO $$DECLARE t text; BEGIN FOR t IN SELECT relname FROM pg_class LOOP "
         "EXECUTE format('DROP TABLE %I', t); END LOOP; END$$"),
    # Seen through DO:
    Case("drop-table", "DO $$BEGIN IF true THEN DROP TABLE lines; END IF; END$$",
         "DO $$BEGIN CREATE TEMP TABLE lines_copy (id int); DROP TABLE pg_temp.lines_copy; END$$"),
    Case("drop-column", "DO $$BEGIN EXECUTE 'ALTER TABLE orders ' || 'DROP COLUMN code'; END$$"),
    Case("create-index", "DO $$BEGIN EXECUTE format('CREATE INDEX %I ON %I (number)', 'i', 'lines'); END$$",
         "DO $$BEGIN CREATE TABLE x (id bigint PRIMARY KEY, a int); CREATE INDEX i ON x (a); END$$"),
    Case("truncate", "DO $body$\nBEGIN\n  CASE WHEN 1 = 1 THEN\n    TRUNCATE moods;\n  ELSE NULL; END CASE;\nEND $body$"),
]  # fmt: skip

MORE = [
    Case("delete-without-where", "WITH gone AS (DELETE FROM lines RETURNING id) SELECT count(*) FROM gone",
         "WITH gone AS (DELETE FROM lines WHERE id = 1 RETURNING id) SELECT count(*) FROM gone"),
    Case("create-index", "CREATE INDEX i ON visits (at)", "CREATE INDEX i5 ON ONLY visits (at)"),
    Case("drop-function", "DROP AGGREGATE best(int)"),
    Case("large-update", "UPDATE lines SET number = 0 WHERE sku LIKE 'x%'", "UPDATE lines SET number = 0 WHERE id = 3"),
    Case("large-update", "DELETE FROM lines WHERE number > 7",
         "DELETE FROM lines WHERE ctid = ANY (ARRAY(SELECT ctid FROM lines WHERE number > 7 LIMIT 500))"),
    Case("restart-sequence", "ALTER SEQUENCE receipt_numbers RESTART WITH 1", "ALTER SEQUENCE receipt_numbers CACHE 20"),
    Case("restart-sequence", "ALTER TABLE tickets ALTER id RESTART", "ALTER TABLE tickets ALTER id SET CACHE 20"),
    Case("drop-default", "ALTER TABLE tickets ALTER seats DROP DEFAULT", "ALTER TABLE tickets ALTER seats SET DEFAULT 2"),
    Case("drop-default", "ALTER TABLE tickets ALTER id DROP IDENTITY",
         "ALTER TABLE tickets ADD COLUMN x int DEFAULT 1; ALTER TABLE tickets ALTER x DROP DEFAULT"),
    Case("revoke", "REVOKE INSERT ON lines FROM CURRENT_USER", "REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
    Case("drop-role", "DROP ROLE somebody", "GRANT SELECT ON lines TO CURRENT_USER"),
    Case("replica-identity", "ALTER TABLE lines REPLICA IDENTITY FULL",
         "ALTER TABLE lines REPLICA IDENTITY USING INDEX lines_pkey"),
    Case("frozen-default", "CREATE TABLE x (id bigint PRIMARY KEY, at timestamptz DEFAULT 'now'::timestamptz)",
         "CREATE TABLE x (id bigint PRIMARY KEY, at timestamptz DEFAULT now(), word text DEFAULT 'now')"),
    Case("frozen-default", "ALTER TABLE lines ADD COLUMN day date DEFAULT date 'today'",
         "ALTER TABLE lines ADD COLUMN day date DEFAULT CURRENT_DATE"),
    Case("not-in-subquery", "DELETE FROM lines WHERE order_id NOT IN (SELECT id FROM orders)",
         "DELETE FROM lines WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = lines.order_id)"),
    Case("create-partition",
         "CREATE TABLE visits_2030 PARTITION OF visits FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
         "CREATE TABLE visits_2030 (LIKE visits INCLUDING DEFAULTS); "
         "ALTER TABLE visits ATTACH PARTITION visits_2030 FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')"),
    Case("view-past-policies", "CREATE VIEW w AS SELECT s.id FROM secrets AS s",
         "CREATE VIEW w WITH (security_invoker = true) AS SELECT id FROM secrets"),
]  # fmt: skip

CASES = [*LOSS, *TYPES, *LOCKS, *BREAKS, *CARE, *MORE]
