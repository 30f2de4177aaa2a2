"""The emptying of a database that a backup is put back into, in the transaction that loads it."""

# Everything of the database's users, so that what is restored is what the file has and no more. (pg_restore's
# own --clean cannot drop the primary key of a partition, and leaves what the file does not know.)
CLEAR = b"""
BEGIN;
SET LOCAL client_min_messages = error;
DO $clear$
DECLARE
    thing record;
BEGIN
    FOR thing IN
        SELECT n.nspname FROM pg_namespace AS n
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', thing.nspname);
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', n.nspname, c.relname) AS name,
               CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                              WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP %s IF EXISTS %s CASCADE', thing.kind, thing.name);
    END LOOP;
    FOR thing IN
        SELECT p.oid FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        IF EXISTS (SELECT FROM pg_proc WHERE oid = thing.oid) THEN
            EXECUTE format('DROP ROUTINE %s CASCADE', thing.oid::regprocedure);
        END IF;
    END LOOP;
    FOR thing IN
        SELECT format('%I.%I', 'public', t.typname) AS name FROM pg_type AS t
        WHERE t.typnamespace = 'public'::regnamespace AND t.typelem = 0
          AND (t.typrelid = 0 OR EXISTS (SELECT FROM pg_class WHERE oid = t.typrelid AND relkind = 'c'))
          AND NOT EXISTS (SELECT FROM pg_depend AS d
                          WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
                            AND d.deptype IN ('e', 'i'))
    LOOP
        EXECUTE format('DROP TYPE IF EXISTS %s CASCADE', thing.name);
    END LOOP;
    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
END
$clear$;
"""
