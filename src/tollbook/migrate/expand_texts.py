"""The SQL of expanding and contracting, for string.Template: $$ is a dollar sign.

*<> compares records as they are stored, of any type: = takes 1.0 for 1.00 and, in citext, 'a' for 'A', and
json has none. Without ::record it would be looked for between the columns' own types.
The types and functions of casts are those that the migration finds, wherever a writer looks for its own.
"""

HEAD = "-- tollbook: lock_timeout=2s\n"
OFF = "-- tollbook: lock_timeout=2s transaction=off\n"

RENAME_UP = (
    HEAD
    + """-- Step 1 of a rename, $old to $new: a second column, and a trigger that keeps the two the same.
-- Programs that know only one of the names go on working. The back-fill beside this file follows at once.
-- Then: change the programs over to $new. When none uses $old any more:
--   tollbook migrate expand contract TABLE OLD NEW
ALTER TABLE $table ADD COLUMN $new $type;
CREATE FUNCTION $function() RETURNS trigger LANGUAGE plpgsql AS $$sync$$
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- $new has no default of its own yet: where it says something, its writer is a new program.
        IF NEW.$new IS NOT NULL THEN NEW.$old := NEW.$new; ELSE NEW.$new := NEW.$old; END IF;
    ELSIF ROW(NEW.$new)::record *<> ROW(OLD.$new)::record THEN
        NEW.$old := NEW.$new;
    ELSIF ROW(NEW.$old)::record *<> ROW(OLD.$old)::record THEN
        NEW.$new := NEW.$old;
    END IF;
    RETURN NEW;
END $$sync$$;
-- Its name puts it behind the table's other triggers: what they change is kept the same too.
CREATE TRIGGER $trigger BEFORE INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION $function();
"""
)

TYPE_UP = (
    HEAD  # noqa: S608 -- a template
    + """-- Step 1 of another type for $old: the new column beside it, kept the same by a trigger.
-- Programs go on with $old. The back-fill beside this file follows at once.
ALTER TABLE $table ADD COLUMN $new $type;
CREATE FUNCTION $function() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$sync$$
BEGIN
    NEW.$new := $cast_new;
    RETURN NEW;
END $$sync$$;
CREATE TRIGGER $trigger BEFORE INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION $function();
-- Tried on a row before anybody depends on it: a trigger that fails fails every write.
UPDATE $table SET $old = $old WHERE ctid = (SELECT ctid FROM $table LIMIT 1);
"""
)

BOTH_DOWN = (
    HEAD
    + """DROP TRIGGER IF EXISTS $trigger ON $table;
DROP FUNCTION IF EXISTS $function();
ALTER TABLE $table DROP COLUMN IF EXISTS $new;
"""
)

COPY = """-- tollbook: table=$table key=$key batch=$batch pause=10ms
UPDATE $table SET $new = $old WHERE $range AND ROW($new)::record *<> ROW($old)::record
"""

CAST = """-- tollbook: table=$table key=$key batch=$batch pause=10ms
UPDATE $table SET $new = $cast WHERE $range AND ROW($new)::record *<> ROW(($cast)::$type)::record
"""

READY_HEAD = (
    OFF
    + """-- Step 2: what the old column has, for the new one. Nothing here blocks reads or writes for long:
-- indexes are built concurrently, constraints are added unvalidated and then validated.
"""
)

TIGHTEN = """ALTER TABLE $table ADD CONSTRAINT $constraint CHECK ($new IS NOT NULL) NOT VALID;
ALTER TABLE $table VALIDATE CONSTRAINT $constraint;
-- The validated check spares it the scan under its lock.
ALTER TABLE $table ALTER COLUMN $new SET NOT NULL;
ALTER TABLE $table DROP CONSTRAINT $constraint;"""

SWITCH_UP = (
    HEAD
    + """-- Step 3: the columns change names, in one transaction and one short lock. Programs see the
-- new type under the old name from here on. The old column is kept up to date as $kept,
-- NULL where a value does not fit it.
-- When nobody wants it back: tollbook migrate expand contract TABLE COLUMN_old COLUMN
LOCK TABLE $table IN ACCESS EXCLUSIVE MODE;
DROP TRIGGER $trigger ON $table;
DROP FUNCTION $function();
ALTER TABLE $table RENAME COLUMN $old TO $kept;
ALTER TABLE $table RENAME COLUMN $new TO $old;
${defaults}${loosen}CREATE FUNCTION $back_function() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$sync$$
BEGIN
    NEW.$kept := NEW.$old::$old_type;
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    NEW.$kept := NULL;
    RETURN NEW;
END $$sync$$;
CREATE TRIGGER $back_trigger BEFORE INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION $back_function();
"""
)

NOT_NULL_UP = (
    HEAD
    + """-- Step 1 of NOT NULL for $new: from here on no row gets a NULL; a program that writes one writes the
-- value below. The back-fill beside this file sees to the rows that are there.
CREATE FUNCTION $function() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$sync$$
BEGIN
    IF NEW.$new IS NULL THEN NEW.$new := $value; END IF;
    RETURN NEW;
END $$sync$$;
CREATE TRIGGER $trigger BEFORE INSERT OR UPDATE ON $table FOR EACH ROW EXECUTE FUNCTION $function();
ALTER TABLE $table ADD CONSTRAINT $constraint CHECK ($new IS NOT NULL) NOT VALID;
"""
)

NOT_NULL_DOWN = (
    HEAD
    + """ALTER TABLE $table DROP CONSTRAINT IF EXISTS $constraint;
DROP TRIGGER IF EXISTS $trigger ON $table;
DROP FUNCTION IF EXISTS $function();
"""
)

FILL = """-- tollbook: table=$table key=$key batch=$batch pause=10ms
UPDATE $table SET $new = $value WHERE $range AND $new IS NULL
"""

VALIDATE = (
    OFF
    + """-- Step 2: every row is looked at, without a lock that blocks reads or writes.
-- NOT NULL needs no look then.
-- When no program writes NULL any more: tollbook migrate expand contract TABLE COLUMN COLUMN
ALTER TABLE $table VALIDATE CONSTRAINT $constraint;
ALTER TABLE $table ALTER COLUMN $new SET NOT NULL;
ALTER TABLE $table DROP CONSTRAINT $constraint;
"""
)

LOOSEN = (
    HEAD
    + """ALTER TABLE $table ALTER COLUMN $new DROP NOT NULL;
ALTER TABLE $table ADD CONSTRAINT $constraint CHECK ($new IS NOT NULL) NOT VALID;
"""
)

CONTRACT = (
    HEAD
    + """-- Last step: $old goes, which no program may use any more. There is no way back but a backup.
-- First every row is looked at, without a lock that blocks anybody: none may have what $new has not.
DO $$check$$ BEGIN
    IF EXISTS (SELECT FROM $table WHERE $lost) THEN
        RAISE EXCEPTION 'Rows of $table have a value in $old that $new has not: they were not filled, or the '
            'trigger was off when they were written.';
    END IF;
END $$check$$;
DROP TRIGGER $trigger ON $table;
DROP FUNCTION $function();
${default}ALTER TABLE $table DROP COLUMN $old;
"""
)

CONTRACT_SAME = (
    HEAD
    + """-- Last step: no program writes NULL any more, so nobody has to write a value in its place.
DROP TRIGGER $trigger ON $table;
DROP FUNCTION $function();
"""
)
