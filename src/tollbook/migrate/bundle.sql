-- What the transactions of a bundle call. All of it lies in pg_temp, and goes with the session.

CREATE FUNCTION pg_temp.tollbook_session() RETURNS text LANGUAGE sql AS $tollbook$
    SELECT format('%s (bundle, session %s.%s)', session_user,
        to_hex(trunc(extract(epoch FROM backend_start))::bigint), to_hex(pid))
    FROM pg_stat_activity WHERE pid = pg_backend_pid()
$tollbook$;

CREATE FUNCTION pg_temp.tollbook_run() RETURNS uuid LANGUAGE plpgsql AS $tollbook$
DECLARE open uuid;
BEGIN
    SELECT run_id INTO open FROM tollbook_migrate.runs
    WHERE started_by = pg_temp.tollbook_session() AND ended_at IS NULL;
    IF open IS NULL THEN
        RAISE EXCEPTION 'tollbook: this bundle was refused above; nothing of it is run';
    END IF;
    RETURN open;
END
$tollbook$;

-- Which of the migrations (folder, version, name, checksum) the history has: in force, with that checksum.
CREATE FUNCTION pg_temp.tollbook_known(migrations jsonb)
RETURNS TABLE (name text, there boolean, same boolean) LANGUAGE sql AS $tollbook$
    SELECT m.folder || '/' || m.name, h.id IS NOT NULL, coalesce(h.checksum = m.checksum, false)
    FROM jsonb_to_recordset(migrations) AS m (folder text, version text, name text, checksum text)
    LEFT JOIN tollbook_migrate.history h
        ON h.folder = m.folder AND h.version = m.version AND h.reverted_at IS NULL
$tollbook$;

CREATE FUNCTION pg_temp.tollbook_others(migrations jsonb) RETURNS text LANGUAGE sql AS $tollbook$
    SELECT string_agg(h.folder || '/' || h.name, ', ' ORDER BY h.id) FROM tollbook_migrate.history h
    WHERE h.reverted_at IS NULL
      AND h.folder IN (SELECT m ->> 'folder' FROM jsonb_array_elements(migrations) AS m)
      AND (h.folder, h.version) NOT IN (
        SELECT m ->> 'folder', m ->> 'version' FROM jsonb_array_elements(migrations) AS m)
$tollbook$;

-- Why the bundle must not run here; NULL where nothing is in its way.
CREATE FUNCTION pg_temp.tollbook_obstacle(command text, base jsonb, bundled jsonb)
RETURNS text LANGUAGE plpgsql AS $tollbook$
DECLARE said text;
BEGIN
    SELECT string_agg(p.folder || '/' || p.version, ', ') INTO said FROM tollbook_migrate.progress p;
    IF said IS NOT NULL THEN
        RETURN format('%s stopped half way. Finish it by `tollbook migrate apply`', said);
    END IF;
    SELECT string_agg(k.name, ', ') INTO said FROM pg_temp.tollbook_known(base) k WHERE NOT k.there;
    IF said IS NOT NULL THEN
        RETURN format('out of order: %s must be applied first', said);
    END IF;
    SELECT string_agg(k.name, ', ') INTO said FROM pg_temp.tollbook_known(base) k WHERE NOT k.same;
    IF said IS NOT NULL THEN
        RETURN format('%s was applied here with another text than the bundle was made for', said);
    END IF;
    IF command = 'apply' THEN
        SELECT string_agg(k.name, ', ') INTO said FROM pg_temp.tollbook_known(bundled) k
        JOIN jsonb_array_elements(bundled) AS m ON (m ->> 'folder') || '/' || (m ->> 'name') = k.name
        WHERE k.there AND (k.same OR NOT (m ->> 'repeatable')::boolean);
        IF said IS NOT NULL THEN
            RETURN format('already applied: %s. Make a bundle of what is missing here', said);
        END IF;
    ELSE
        SELECT string_agg(k.name, ', ') INTO said FROM pg_temp.tollbook_known(bundled) k WHERE NOT k.same;
        IF said IS NOT NULL THEN
            RETURN format('%s is not applied here, or with another text', said);
        END IF;
    END IF;
    said := pg_temp.tollbook_others(base || bundled);
    IF said IS NOT NULL THEN
        RETURN format('out of order: %s is applied here, which the bundle does not know', said);
    END IF;
    RETURN NULL;
END
$tollbook$;

-- Takes the lock that every run holds and opens a run, or refuses.
CREATE FUNCTION pg_temp.tollbook_open(command text, engine text, base jsonb, bundled jsonb)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE said text;
BEGIN
    IF NOT pg_try_advisory_lock(7063417201337402) THEN
        RAISE EXCEPTION 'tollbook: another run works on this database. Nothing was changed'
            USING HINT = 'Wait for it to end, then run this file again.';
    END IF;
    said := pg_temp.tollbook_obstacle(command, base, bundled);
    IF said IS NOT NULL THEN
        PERFORM pg_advisory_unlock(7063417201337402);
        RAISE EXCEPTION 'tollbook: %. Nothing was changed', said;
    END IF;
    UPDATE tollbook_migrate.runs SET ended_at = clock_timestamp(), outcome = 'interrupted'
    WHERE ended_at IS NULL;
    INSERT INTO tollbook_migrate.runs (run_id, command, planned, engine, started_by)
    SELECT gen_random_uuid(), command,
        ARRAY(SELECT (m.value ->> 'folder') || '/' || (m.value ->> 'name')
            FROM jsonb_array_elements(bundled) WITH ORDINALITY AS m (value, place) ORDER BY m.place),
        engine, pg_temp.tollbook_session();
    CREATE TEMPORARY TABLE tollbook_left (place bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO pg_temp.tollbook_left
    SELECT m.place, (m.value ->> 'folder') || '/' || (m.value ->> 'name')
    FROM jsonb_array_elements(bundled) WITH ORDINALITY AS m (value, place);
END
$tollbook$;

-- Which migration of this run is the next.
CREATE FUNCTION pg_temp.tollbook_next() RETURNS text LANGUAGE plpgsql AS $tollbook$
BEGIN
    PERFORM pg_temp.tollbook_run();
    RETURN (SELECT l.name FROM pg_temp.tollbook_left l ORDER BY l.place LIMIT 1);
END
$tollbook$;

-- Notes, in the transaction of a migration, that it is done.
CREATE FUNCTION pg_temp.tollbook_done() RETURNS void LANGUAGE plpgsql AS $tollbook$
BEGIN
    DELETE FROM pg_temp.tollbook_left l WHERE l.place = (SELECT min(m.place) FROM pg_temp.tollbook_left m);
END
$tollbook$;

-- The object of a promise as it is here, with its schema and name, or NULL.
CREATE FUNCTION pg_temp.tollbook_find(promise jsonb, path text[], claimed text[])
RETURNS jsonb LANGUAGE plpgsql AS $tollbook$
DECLARE
    kind text := promise ->> 'kind';
    place text;
    hit record;
    wanted text[];
BEGIN
    IF kind = 'schema' THEN
        RETURN (SELECT promise FROM pg_namespace WHERE nspname = promise ->> 'name');
    ELSIF kind = 'extension' THEN
        RETURN (SELECT promise FROM pg_extension WHERE extname = promise ->> 'name');
    END IF;
    IF promise ? 'args' THEN
        SELECT array_agg(CASE WHEN to_regtype(w.word) IS NULL THEN NULL ELSE
            (SELECT quote_ident(n.nspname) || '.' || quote_ident(t.typname) FROM pg_type t
             JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = to_regtype(w.word)::oid) END
            ORDER BY w.place)
        INTO wanted FROM jsonb_array_elements_text(promise -> 'args') WITH ORDINALITY AS w (word, place);
        wanted := coalesce(wanted, '{}');
    END IF;
    FOREACH place IN ARRAY CASE WHEN promise ? 'schema' THEN ARRAY[promise ->> 'schema']
        WHEN promise ? 'loose' THEN path || 'public'::text ELSE path END LOOP
        IF kind = 'function' THEN
            SELECT f.args INTO hit FROM (
                SELECT ARRAY(SELECT quote_ident(n.nspname) || '.' || quote_ident(t.typname)
                    FROM unnest(p.proargtypes) WITH ORDINALITY AS a (oid, place)
                    JOIN pg_type t ON t.oid = a.oid JOIN pg_namespace n ON n.oid = t.typnamespace
                    ORDER BY a.place) AS args
                FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace
                WHERE p.proname = promise ->> 'name' AND s.nspname = place) AS f
            WHERE wanted IS NULL OR f.args = wanted
               OR (array_position(wanted, NULL) IS NOT NULL AND cardinality(f.args) = cardinality(wanted))
            LIMIT 1;
            IF FOUND THEN
                RETURN promise || jsonb_build_object('schema', place, 'args', hit.args);
            END IF;
        ELSIF kind = 'trigger' THEN
            PERFORM FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE g.tgname = promise ->> 'name' AND c.relname = promise ->> 'on' AND n.nspname = place
              AND NOT g.tgisinternal;
            IF FOUND THEN
                RETURN promise || jsonb_build_object('schema', place);
            END IF;
        ELSIF kind = 'type' THEN
            PERFORM FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
            LEFT JOIN pg_class c ON c.oid = t.typrelid
            WHERE t.typname = promise ->> 'name' AND n.nspname = place
              AND t.typtype IN ('b', 'c', 'd', 'e', 'r') AND (c.oid IS NULL OR c.relkind = 'c');
            IF FOUND THEN
                RETURN promise || jsonb_build_object('schema', place);
            END IF;
        ELSE
            SELECT c.relname::text AS name INTO hit
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid
            WHERE n.nspname = place AND c.relpersistence <> 't' AND coalesce(i.indisvalid, true)
              AND c.relkind = ANY(CASE kind WHEN 'table' THEN '{r,p,f}' WHEN 'view' THEN '{v}'
                    WHEN 'materialized view' THEN '{m}' WHEN 'sequence' THEN '{S}'
                    ELSE '{i,I}' END::"char"[])
              AND CASE WHEN promise ? 'name' THEN c.relname = promise ->> 'name'
                  ELSE t.relname = promise ->> 'on' AND NOT c.relname = ANY(claimed)
                    AND NOT EXISTS (SELECT FROM pg_constraint k
                        WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')) END
            ORDER BY c.oid DESC LIMIT 1;
            IF FOUND THEN
                RETURN promise || jsonb_build_object('schema', place, 'name', hit.name);
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END
$tollbook$;

-- Those of the promises that are kept now; the rest, where all must be, is an error.
CREATE FUNCTION pg_temp.tollbook_standing(promises jsonb, path text[], required boolean)
RETURNS jsonb LANGUAGE plpgsql AS $tollbook$
DECLARE
    promise jsonb;
    object jsonb;
    standing jsonb := '[]';
    missing text[] := '{}';
    claimed text[] := ARRAY(SELECT p ->> 'name' FROM jsonb_array_elements(promises) AS p WHERE p ? 'name');
BEGIN
    FOR promise IN SELECT value FROM jsonb_array_elements(promises) LOOP
        object := pg_temp.tollbook_find(promise, path, claimed);
        IF object IS NULL THEN
            CONTINUE WHEN promise ? 'loose';
            missing := missing || format('the %s %s', promise ->> 'kind',
                coalesce(promise ->> 'name', format('on %s', promise ->> 'on')));
        ELSE
            standing := standing || (object - 'loose');
            claimed := claimed || (object ->> 'name');
        END IF;
    END LOOP;
    IF required AND missing <> '{}' THEN
        RAISE EXCEPTION 'tollbook: not everything promised is there: %', array_to_string(missing, ', ')
            USING HINT = 'The migration is rolled back.';
    END IF;
    RETURN standing;
END
$tollbook$;

-- First in a migration's transaction: is it its turn, and what was there before it.
CREATE FUNCTION pg_temp.tollbook_begin(migration text, promises jsonb, may_remove boolean)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE
    path text[] := current_schemas(false);
    first text := pg_temp.tollbook_next();
BEGIN
    IF first IS DISTINCT FROM migration THEN
        RAISE EXCEPTION 'tollbook: % is not run, as % did not succeed', migration, coalesce(first, 'it');
    END IF;
    PERFORM set_config('tollbook.found', pg_temp.tollbook_standing(promises, path, false)::text, true);
    PERFORM set_config('tollbook.earlier', CASE WHEN may_remove THEN pg_temp.tollbook_standing(
        (SELECT coalesce(jsonb_agg(p.value ORDER BY h.id), '[]') FROM tollbook_migrate.history h,
            jsonb_array_elements(h.promised) AS p (value) WHERE h.reverted_at IS NULL),
        path, false)::text ELSE '[]' END, true);
END
$tollbook$;

-- After the statements of a migration: everything promised must be there. Keeps what the history will say.
CREATE FUNCTION pg_temp.tollbook_prove(promises jsonb) RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE
    before jsonb := coalesce(nullif(current_setting('tollbook.found', true), ''), '[]')::jsonb;
    earlier jsonb := coalesce(nullif(current_setting('tollbook.earlier', true), ''), '[]')::jsonb;
    kept jsonb := pg_temp.tollbook_standing(promises, current_schemas(false), true);
    still jsonb := pg_temp.tollbook_standing(earlier, '{}', false);
BEGIN
    SELECT coalesce(jsonb_agg(k.value || jsonb_build_object('made', NOT EXISTS (
            SELECT FROM jsonb_array_elements(before) AS b (value)
            WHERE b.value - 'conditional' - 'made' = k.value - 'conditional' - 'made'))
            ORDER BY k.place), '[]')
    INTO kept FROM jsonb_array_elements(kept) WITH ORDINALITY AS k (value, place);
    PERFORM set_config('tollbook.promised', kept::text, true);
    PERFORM set_config('tollbook.removed', (SELECT coalesce(jsonb_agg(e.value), '[]')
        FROM jsonb_array_elements(earlier) AS e (value)
        WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(still) AS s (value) WHERE s.value = e.value)
        )::text, true);
END
$tollbook$;

-- One statement of a check file: it fails on any error, and a lone boolean column that is not true fails it.
CREATE FUNCTION pg_temp.tollbook_check(place text, statement text, truths boolean)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE
    sound boolean := true;
    known record;
BEGIN
    IF NOT truths THEN
        EXECUTE statement;
        RETURN;
    END IF;
    BEGIN
        EXECUTE 'CREATE TEMPORARY TABLE tollbook_answer AS ' || statement;
    EXCEPTION WHEN duplicate_column OR invalid_table_definition OR feature_not_supported OR syntax_error THEN
        EXECUTE statement;  -- it has several columns, or none of a type that a table can have
        RETURN;
    END;
    SELECT count(*) AS columns, min(attname) AS name, min(atttypid) AS type INTO known FROM pg_attribute
    WHERE attrelid = 'pg_temp.tollbook_answer'::regclass AND attnum > 0;
    IF known.columns = 1 AND known.type = 'boolean'::regtype THEN
        EXECUTE format('SELECT coalesce(bool_and(coalesce(%I, false)), true) FROM pg_temp.tollbook_answer',
            known.name) INTO sound;
    END IF;
    DROP TABLE pg_temp.tollbook_answer;
    IF NOT sound THEN
        RAISE EXCEPTION 'tollbook: the check failed: %: this statement returned false or NULL', place
            USING HINT = 'The migration is rolled back.';
    END IF;
END
$tollbook$;

-- Last in a migration's transaction: its row of the history.
CREATE FUNCTION pg_temp.tollbook_end(migration jsonb, engine text, down text)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE run uuid := pg_temp.tollbook_run();
BEGIN
    IF (migration ->> 'repeatable')::boolean THEN
        UPDATE tollbook_migrate.history SET reverted_at = clock_timestamp(), reverted_run_id = run
        WHERE folder = migration ->> 'folder' AND version = migration ->> 'version' AND reverted_at IS NULL;
    END IF;
    DELETE FROM tollbook_migrate.progress
    WHERE folder = migration ->> 'folder' AND version = migration ->> 'version';
    INSERT INTO tollbook_migrate.history
        (folder, version, name, checksum, run_id, duration, applied_by, engine, down_sql, promised, removed)
    VALUES (migration ->> 'folder', migration ->> 'version', migration ->> 'name', migration ->> 'checksum',
        run, clock_timestamp() - transaction_timestamp(), session_user, engine, down,
        current_setting('tollbook.promised')::jsonb, current_setting('tollbook.removed')::jsonb);
    PERFORM pg_temp.tollbook_done();
    RAISE INFO 'tollbook: applied %/%', migration ->> 'folder', migration ->> 'name';
END
$tollbook$;

-- Last in the transaction of a migration taken back: its objects must be gone.
CREATE FUNCTION pg_temp.tollbook_take_back(migration jsonb, kept jsonb)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE
    run uuid := pg_temp.tollbook_run();
    applied record;
    left_behind text;
BEGIN
    SELECT h.id, h.promised INTO STRICT applied FROM tollbook_migrate.history h
    WHERE h.folder = migration ->> 'folder' AND h.version = migration ->> 'version'
      AND h.reverted_at IS NULL;
    SELECT string_agg(format('the %s %s', p.value ->> 'kind', p.value ->> 'name'), ', ') INTO left_behind
    FROM jsonb_array_elements(applied.promised) AS p (value)
    WHERE (p.value ->> 'made')::boolean
      AND NOT ((p.value ->> 'conditional')::boolean AND p.value ->> 'kind' IN ('schema', 'extension'))
      AND NOT EXISTS (
        SELECT FROM (SELECT k.value FROM jsonb_array_elements(kept) AS k (value)
            UNION ALL SELECT q.value FROM tollbook_migrate.history h,
                jsonb_array_elements(h.promised) AS q (value)
            WHERE h.reverted_at IS NULL AND h.id <> applied.id) AS o
        WHERE o.value ->> 'kind' = p.value ->> 'kind' AND o.value ->> 'name' = p.value ->> 'name'
          AND coalesce(o.value ->> 'schema' = p.value ->> 'schema', true)
          AND coalesce(o.value ->> 'on' = p.value ->> 'on', true)
          AND coalesce(o.value -> 'args' = p.value -> 'args', true))
      AND pg_temp.tollbook_find(p.value, '{}', '{}') IS NOT NULL;
    IF left_behind IS NOT NULL THEN
        RAISE EXCEPTION 'tollbook: the down statements of %/% leave behind: %', migration ->> 'folder',
            migration ->> 'name', left_behind USING HINT = 'It is rolled back, and stays applied.';
    END IF;
    DELETE FROM tollbook_migrate.progress
    WHERE folder = migration ->> 'folder' AND version = migration ->> 'version';
    UPDATE tollbook_migrate.history SET reverted_at = clock_timestamp(), reverted_run_id = run
    WHERE id = applied.id AND reverted_at IS NULL;
    PERFORM pg_temp.tollbook_done();
    RAISE INFO 'tollbook: took back %/%', migration ->> 'folder', migration ->> 'name';
END
$tollbook$;

-- Between the parts of a migration that is not one transaction: how far it has come.
CREATE FUNCTION pg_temp.tollbook_turn(migration jsonb, direction text, statements integer)
RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE name text := (migration ->> 'folder') || '/' || (migration ->> 'name');
BEGIN
    IF name IS DISTINCT FROM pg_temp.tollbook_next() OR statements <> coalesce(
        (SELECT p.statements FROM tollbook_migrate.progress p WHERE p.folder = migration ->> 'folder'
         AND p.version = migration ->> 'version' AND p.direction = tollbook_turn.direction), 0)
    THEN
        RAISE EXCEPTION 'tollbook: the rest of % is not run, as what stands before it did not succeed', name;
    END IF;
END
$tollbook$;

CREATE FUNCTION pg_temp.tollbook_keep(migration jsonb, direction text, statements integer, fingerprint text)
RETURNS void LANGUAGE sql AS $tollbook$
    INSERT INTO tollbook_migrate.progress AS p
        (folder, version, direction, statements, fingerprint, run_id)
    VALUES (migration ->> 'folder', migration ->> 'version', direction, statements, fingerprint,
        pg_temp.tollbook_run())
    ON CONFLICT (folder, version) DO UPDATE SET direction = excluded.direction,
        statements = excluded.statements, fingerprint = excluded.fingerprint,
        run_id = excluded.run_id, at = clock_timestamp()
$tollbook$;

-- Closes the run, and lets others in.
CREATE FUNCTION pg_temp.tollbook_close() RETURNS void LANGUAGE plpgsql AS $tollbook$
DECLARE
    run uuid := pg_temp.tollbook_run();
    remaining text[] := ARRAY(SELECT l.name FROM pg_temp.tollbook_left l ORDER BY l.place);
BEGIN
    UPDATE tollbook_migrate.runs SET ended_at = clock_timestamp(),
        outcome = CASE WHEN remaining = '{}' THEN 'done' ELSE 'failed' END
    WHERE run_id = run AND ended_at IS NULL;
    PERFORM pg_advisory_unlock(7063417201337402);
    IF remaining = '{}' THEN
        RAISE INFO 'tollbook: done';
    ELSE
        RAISE WARNING 'tollbook: not done: %', array_to_string(remaining, ', ');
    END IF;
END
$tollbook$;
