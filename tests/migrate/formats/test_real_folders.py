"""What folders of well-known projects really hold: run as it stands, or refused with what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate.errors import FolderRefused, PreflightRefused

Files = dict[str, str | bytes]
Apply = Callable[..., Result]

PARTS = (
    "CREATE TABLE t (i int);\n"
    "{}DO $$ BEGIN FOR n IN 1..3 LOOP INSERT INTO t VALUES (n); COMMIT; END LOOP; END $$;\nCREATE TABLE u ();"
)
DUMP = r"""--
-- PostgreSQL database dump
--

\restrict dTvLhKZ

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA app;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.t (id integer NOT NULL, s text);
CREATE SEQUENCE public.t_id_seq AS integer START WITH 1 INCREMENT BY 1 NO MINVALUE NO MAXVALUE CACHE 1;
ALTER SEQUENCE public.t_id_seq OWNED BY public.t.id;
ALTER TABLE ONLY public.t ALTER COLUMN id SET DEFAULT nextval('public.t_id_seq'::regclass);
COPY public.t (id, s) FROM stdin;
1	a\tb;'
2	\N
\.

SELECT pg_catalog.setval('public.t_id_seq', 2, true);
ALTER TABLE ONLY public.t ADD CONSTRAINT t_pkey PRIMARY KEY (id);
CREATE INDEX t_s ON public.t USING btree (s);

\unrestrict dTvLhKZ
"""
RUN: dict[str, tuple[Files, str]] = {
    "a dump as baseline": (
        {"0001_baseline.sql": DUMP, "0002_next.sql": "CREATE TABLE after_it (i int);"},
        "SELECT to_regclass('public.after_it') IS NOT NULL AND (SELECT count(*) FROM t) = 2",
    ),
    "an enum made anew, one that grows and is used at once": (
        {
            "1_a.up.sql": "BEGIN;\nCREATE TYPE e AS ENUM ('a');\nCREATE TABLE t (e e DEFAULT 'a');\nCOMMIT;",
            "2_b.up.sql": "BEGIN;\nALTER TYPE e RENAME TO e_old;\nCREATE TYPE e AS ENUM ('a', 'b');\n"
            "ALTER TABLE t ALTER e DROP DEFAULT, ALTER e TYPE e USING e::text::e, ALTER e SET DEFAULT 'b';\n"
            "DROP TYPE e_old;\nCOMMIT;",
            "3_c.up.sql": "ALTER TYPE e ADD VALUE IF NOT EXISTS 'c' AFTER 'a';\nINSERT INTO t VALUES ('c');",
        },
        "SELECT count(*) = 1 FROM t WHERE e = 'c'",
    ),
    "an enum made anew, as Prisma writes it": (
        {
            "20230101000000_init/migration.sql": "-- CreateEnum\nCREATE TYPE \"Role\" AS ENUM ('A', 'B');\n\n"
            '-- CreateTable\nCREATE TABLE "User" ("id" SERIAL NOT NULL, "role" "Role" NOT NULL);\n'
            '-- CreateIndex\nCREATE UNIQUE INDEX "User.role_unique" ON "User"("role");\n',
            "20230102000000_role/migration.sql": "/*\n  Warnings:\n\n  - It's gone.\n*/\nBEGIN;\n"
            'CREATE TYPE "Role_new" AS ENUM (\'A\');\nALTER TABLE "User" ALTER COLUMN "role" TYPE "Role_new" '
            'USING ("role"::text::"Role_new");\nALTER TYPE "Role" RENAME TO "Role_old";\n'
            'ALTER TYPE "Role_new" RENAME TO "Role";\nDROP TYPE "Role_old";\nCOMMIT;\n',
            "migration_lock.toml": 'provider = "postgresql"\n',
        },
        "SELECT to_regtype('\"Role_old\"') IS NULL",
    ),
    "files that say nothing": (
        {"0001_a.sql": "-- nothing\n/* nor this */\n", "0002_b.sql": "", "0003_c.sql": ";;\n-- x\n;"},
        "SELECT count(*) = 3 FROM tollbook_migrate.history",
    ),
    "line ends, a mark and upper case of other systems": (
        {"0001_A.UP.SQL": b"\xef\xbb\xbfCREATE TABLE t (\r\n\ti int,\r\n\ts text DEFAULT 'a\r\nb'\r\n)"},
        "SELECT to_regclass('t') IS NOT NULL",
    ),
    "bodies in standard SQL": (
        {"0001_a.sql": "CREATE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT a; SELECT a + 1; END;"},
        "SELECT f(1) = 2",
    ),
    "a block that commits": (
        {"0001_a.sql": PARTS.format("")},
        "SELECT count(*) = 3 AND to_regclass('u') IS NOT NULL FROM t",
    ),
    "a procedure that commits": (
        {
            "0001_a.sql": "CREATE TABLE t (i int);\nCREATE PROCEDURE fill() LANGUAGE plpgsql AS $$ BEGIN\n"
            "INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); END $$;\nCALL fill();"
        },
        "SELECT count(*) = 2 FROM t",
    ),
    "savepoints of its own": (
        {"0001_a.sql": "SAVEPOINT a; CREATE TABLE t (); ROLLBACK TO a; CREATE TABLE u (); RELEASE a;"},
        "SELECT to_regclass('t') IS NULL AND to_regclass('u') IS NOT NULL",
    ),
    "versions with dots, in the order of numbers": (
        {
            "1.0.0_a.sql": "CREATE TABLE a ()",
            "1.10.0_c.sql": "ALTER TABLE a RENAME b TO c",
            "1.2.0_b.sql": "ALTER TABLE a ADD b int",
        },
        "SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'a'::regclass AND attname = 'c'",
    ),
    "a folder for each release": (
        {
            "v1.10/01_c.up.sql": "ALTER TABLE a ADD c int",
            "v1.2/00__a.sql": "CREATE TABLE a ()",
            "v1.2/02_b.sql": "ALTER TABLE a ADD b int",
            "v1.2/schema.sql": "not run",
        },
        "SELECT array_agg(version ORDER BY version) = '{1.10.1,1.2.0,1.2.2}' FROM tollbook_migrate.history",
    ),
    "Flyway told of a small prefix": (
        {
            "v001__a.sql": "CREATE TABLE a ()",
            "v001__a.sql.orig": "",
            "v010__b.sql": "ALTER TABLE a ADD b int",
        },
        "SELECT count(*) = 2 FROM tollbook_migrate.history",
    ),
}
REFUSED: dict[str, tuple[Files, type[Exception], str]] = {
    "a template": (
        {"20171026211738_u.up.sql": 'CREATE TABLE {{ index .Options "Namespace" }}.users (id uuid);'},
        PreflightRefused,
        "write the SQL that it is rendered to",
    ),
    "another dialect": (
        {"0001_a.sql": "CREATE TABLE `t` (`id` int AUTO_INCREMENT) ENGINE=InnoDB;"},
        PreflightRefused,
        "double quotes",
    ),
    "another encoding": ({"0001_a.sql": b"SELECT 1; -- caf\xe9\n"}, FolderRefused, "0001_a.sql:1:17"),
    "one number twice": ({"0001_a.sql": "", "0001_b.sql": ""}, FolderRefused, "same number"),
    "folders in it": ({"sql/0001_a.sql": "SELECT 1"}, FolderRefused, "none would run"),
    "no numbers": ({"users.sql": "SELECT 1", "v1.sql": ""}, FolderRefused, "none would run"),
    "an extension that is not there": (
        {"0001_a.sql": "CREATE EXTENSION IF NOT EXISTS timescaledb CASCADE;"},
        PreflightRefused,
        "The server has no extension timescaledb",
    ),
    "a language that is not there": (
        {"0001_a.sql": "CREATE EXTENSION plpython3u;"},
        PreflightRefused,
        "no extension plpython3u",
    ),
    "what lets go of the run's lock": ({"0001_a.sql": "DISCARD ALL;"}, PreflightRefused, "DISCARD ALL"),
}


def fill(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", RUN)
def test_a_folder_runs_as_it_stands(name: str, folder: Path, apply: Apply, ask: Any) -> None:
    files, holds = RUN[name]
    fill(folder, files)
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask(holds) is True
    assert "Nothing to do" in apply().output


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_with_what_to_do(name: str, folder: Path, apply: Apply, ask: Any) -> None:
    files, error, words = REFUSED[name]
    fill(folder, files)
    result = apply()
    assert result.exit_code == error.exit_code  # pyright: ignore[reportAttributeAccessIssue]
    assert words in " ".join(result.output.split())
    assert ask("SELECT to_regnamespace('tollbook_migrate') IS NULL")


def test_what_a_block_committed_itself_is_said_to_stay(folder: Path, apply: Apply, ask: Any) -> None:
    text = PARTS.format("").replace("COMMIT;", "COMMIT; IF n = 2 THEN RAISE 'no'; END IF;")
    fill(folder, {"0001_a.sql": text})
    said = " ".join(apply().output.split())
    assert "What DO committed itself stays" in said
    assert ask("SELECT count(*) FROM t") == 2
    fill(folder, {"0001_a.sql": PARTS.format("")})
    assert apply().exit_code == 0
    assert ask("SELECT count(*) FROM t") == 5


def test_all_is_taken_back_to_a_first_migration_with_the_number_zero(
    write: Any, apply: Apply, run: Any, ask: Any
) -> None:
    for label in ("0000_a", "0001_b"):
        write(label, up=f"CREATE TABLE t{label[-1]} ();", down=f"DROP TABLE t{label[-1]};")
    apply()
    assert run("revert", "--to", "0", "--auto", "--skip-backup").exit_code == 0
    assert ask("SELECT to_regclass('ta') IS NOT NULL AND to_regclass('tb') IS NULL")
