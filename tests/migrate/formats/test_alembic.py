"""Alembic's revisions do here what Alembic makes them do: rendered where that is the same, else run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats, preflight
from tollbook.migrate.session import connected, read_pid
from tollbook.migrate.walkthrough import Walk

Apply = Callable[..., Result]

IMPORTS = "import sqlalchemy as sa\nfrom alembic import context, op\n"
HEAD = "revision: str = {}\ndown_revision = {}\n"
UNUSUAL = "revision, down_revision = {}, {}\n"  # only running it tells
ENV = (
    "import sqlalchemy as sa\nfrom alembic import context\nfrom logging.config import fileConfig\n"
    "fileConfig(context.config.config_file_name)\nprint('not for our output')\n"
    "names = sa.MetaData(naming_convention={'uq': 'uq_%(table_name)s_%(column_0_name)s'})\n"
    "if context.is_offline_mode():\n    context.configure(url='x', target_metadata=names)\n"
    "raise SystemExit('it would migrate now')\n"
)


def lay(
    folder: Path,
    *bodies: str,
    env: str = "",
    settings: str = "",
    versions: str = "db/versions",
    head: str = HEAD,
) -> None:
    (folder / versions).mkdir(parents=True)
    (folder / "alembic.ini").write_text(settings or "[alembic]\nscript_location = db\n")
    (folder / "db").mkdir(exist_ok=True)
    (folder / "db/env.py").write_text(env)
    before = "None"
    for number, body in enumerate(bodies, 1):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        said = head.format(repr(f"r{number}"), before)
        (folder / versions / f"r{number}_x.py").write_text(f"{IMPORTS}{said}def upgrade():\n{lines}")
        before = repr(f"r{number}")


TABLE = "op.create_table('t', sa.Column('i', sa.Integer()), sa.Column('s', sa.Text()))"
SAID = "sa.table('t', sa.column('i', sa.Integer), sa.column('s', sa.Text))"
SAYS = "op.execute('INSERT INTO t (s) VALUES (current_schema())')\n"
HOLDS: dict[str, tuple[str, str]] = {
    "a sign of percent": ("op.execute(\"INSERT INTO t VALUES (1, 'a%b')\")", "SELECT s = 'a%b' FROM t"),
    "a tab": ("op.execute(\"INSERT INTO t VALUES (1, 'a\\tb')\")", "SELECT s = e'a\\tb' FROM t"),
    "a comment at its end": (
        "op.execute('INSERT INTO t VALUES (1) -- one')\nop.execute('INSERT INTO t VALUES (2)')",
        "SELECT count(*) = 2 FROM t",
    ),
    "parameters": (
        "op.get_bind().execute(sa.text('INSERT INTO t VALUES (:i, :s)'), {'i': 1, 's': 'a'})",
        "SELECT s = 'a' FROM t",
    ),
    "a parameter that says no type": (
        "op.get_bind().execute(sa.text('INSERT INTO t SELECT 1, json_build_object(:s, :s)'), {'s': 'a%b'})",
        "SELECT s LIKE '%a\\%b%' FROM t",
    ),
    "a sign of percent that goes to the driver": (
        "op.get_bind().exec_driver_sql(\"INSERT INTO t VALUES (1, format('%I', 'a'))\")\n"
        "op.get_bind().execute(sa.text(\"INSERT INTO t VALUES (1, format('%I', 'a'))\"))",
        "SELECT count(*) = 2 FROM t WHERE s = 'a'",
    ),
    "rows": (f"op.get_bind().execute({SAID}.insert(), [dict(i=1, s='a')])", "SELECT s = 'a' FROM t"),
    "a default of Python's": (
        "named = sa.Table('t', sa.MetaData(), sa.Column('i'), sa.Column('s', sa.Text, default='a'))\n"
        "op.execute(named.insert().values(i=1))",
        "SELECT s = 'a' FROM t",
    ),
    "a type that may be there": (
        "op.execute(\"CREATE TYPE e AS ENUM ('a')\")\n"
        "sa.Enum('a', name='e').create(op.get_bind(), checkfirst=True)",
        "SELECT to_regtype('e') IS NOT NULL",
    ),
    "a type of a table that is there already": (
        "one = sa.Enum('a', name='e')\nop.create_table('u', sa.Column('e', one))\n"
        "op.create_table('v', sa.Column('e', one))",
        "SELECT to_regclass('v') IS NOT NULL",
    ),
    "another way when it is rendered": (
        "if not context.is_offline_mode():\n    op.execute('CREATE TABLE u ()')",
        "SELECT to_regclass('u') IS NOT NULL",
    ),
    "a block outside a transaction, and a question": (
        "op.get_bind().execute(sa.text('SELECT 1')).scalar()\nwith op.get_context().autocommit_block():\n"
        "    op.execute('CREATE TABLE u ()')",
        "SELECT to_regclass('u') IS NOT NULL",
    ),
    "an index without a lock, after a question": (
        "op.get_bind().execute(sa.text('SELECT 1')).scalar()\nwith op.get_context().autocommit_block():\n"
        "    op.create_index('t_i', 't', ['i'], postgresql_concurrently=True)",
        "SELECT to_regclass('t_i') IS NOT NULL",
    ),
    "a question whose failure it swallows": (
        "try:\n    there = sa.inspect(op.get_bind()).has_table('t')\nexcept Exception:\n    there = False\n"
        "if there:\n    op.execute('CREATE TABLE u ()')",
        "SELECT to_regclass('u') IS NOT NULL",
    ),
    "the application's names of constraints": (
        "op.create_unique_constraint(None, 't', ['i'])\nop.drop_constraint('uq_t_i', 't')",
        "SELECT count(*) = 0 FROM pg_constraint WHERE conrelid = 't'::regclass",
    ),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_revision_does_what_alembic_makes_it_do(name: str, folder: Path, apply: Apply, ask: Any) -> None:
    body, holds = HOLDS[name]
    lay(folder, TABLE, body, env=ENV)
    result = apply()
    assert result.exit_code == 0, result.output
    assert "not for our output" not in result.stdout
    assert ask(holds) is True


@pytest.mark.parametrize(
    "offline", ["context.configure(url='x')", "raise ValueError('never offline')", "context.run_migrations()"]
)
def test_the_applications_names_are_those_that_env_gives_where_it_connects(
    offline: str, folder: Path, apply: Apply, ask: Any
) -> None:
    env = ENV.replace("context.configure(url='x', target_metadata=names)", offline)
    env += "context.configure(connection=names, target_metadata=names)\n"
    body, holds = HOLDS["the application's names of constraints"]
    lay(folder, TABLE, body, env=env)
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask(holds) is True


@pytest.mark.parametrize("ask_first", ["", "op.get_bind().execute(sa.text('SELECT 1')).scalar()\n"])
def test_a_value_that_a_revision_gives_to_an_enum_outside_its_transaction_is_used_in_it(
    ask_first: str, folder: Path, apply: Apply, ask: Any
) -> None:
    grow = "with op.get_context().autocommit_block():\n    op.execute(\"ALTER TYPE kind ADD VALUE 'b'\")\n"
    use = "op.execute(\"INSERT INTO t VALUES ('b')\")"
    lay(
        folder,
        "op.execute(\"CREATE TYPE kind AS ENUM ('a'); CREATE TABLE t (kind kind)\")",
        f"{ask_first}{grow}{use}",
    )
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask("SELECT kind = 'b' FROM t")


@pytest.mark.parametrize("ask_first", ["", "op.get_bind().execute(sa.text('SELECT 1')).scalar()\n"])
def test_the_schema_of_alembics_table_is_that_of_revisions_which_ask_for_it(
    ask_first: str, folder: Path, apply: Apply, ask: Any
) -> None:
    body = f"{ask_first}op.create_table('t', schema=op.get_context().version_table_schema)"
    lay(
        folder,
        "op.execute('CREATE SCHEMA app')",
        body,
        env=ENV.replace("names)\n", "names, version_table_schema='app')\n"),
    )
    result = apply()
    assert result.exit_code == 0, result.output
    assert ask("SELECT to_regclass('app.t') IS NOT NULL")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "op.execute('COMMIT')\nop.execute('CREATE TABLE u ()')\nop.execute('SELECT 1/0')",
            "committed itself",
        ),
        ("open('not_there.sql')", "looked for from where this is run"),
    ],
)
def test_what_a_program_leaves_behind_is_said(body: str, said: str, folder: Path, apply: Apply) -> None:
    lay(folder, TABLE, f"op.get_bind().execute(sa.text('SELECT 1')).scalar()\n{body}")
    output = " ".join(apply().output.split())
    assert said in output
    assert ("Rolled back" in output) == ("looked" in said)


def test_an_env_that_cannot_be_run_is_named_for_what_it_would_have_said(folder: Path, apply: Apply) -> None:
    lay(folder, TABLE, env="import not_there_at_all\n")
    result = apply()
    assert result.exit_code == 0
    assert "db/env.py: No module named 'not_there_at_all'. Constraints without a name" in result.stderr


def test_a_plan_lets_a_program_leave_the_transaction_as_apply_does_and_not_live(
    folder: Path, run: Apply, ask: Any, url: str
) -> None:
    body, holds = HOLDS["an index without a lock, after a question"]
    lay(folder, TABLE, body)
    assert "cannot be tried live" in run("plan", "--live").output
    ready, _ = preflight.prepare(formats.read([Folder("x", folder)]))
    with connected(url) as conn:  # as if it were a shadow
        walk = Walk(conn, read_pid(conn), 5, watch=lambda: psycopg.connect(url, autocommit=True))
        assert "public.t_i" in str([walk.take(one).changes for one in ready])
    assert ask(holds) is True


def test_a_type_of_an_earlier_revision_is_not_made_again(folder: Path, apply: Apply, ask: Any) -> None:
    table = "op.create_table('{}', sa.Column('e', sa.Enum('a', name='e')))"
    asks = "op.get_bind().execute(sa.text('SELECT 1')).scalar()\n" + table.replace("'e'))", "'f'))")
    texts = (text.format(name) for text, name in zip((table, table, asks, asks), "abcd", strict=True))
    lay(folder, *texts, head=UNUSUAL)
    assert apply("--to", "r1").exit_code == 0
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('d') IS NOT NULL")


def test_what_is_applied_is_not_run_again_and_an_edit_of_it_is_found(
    folder: Path, apply: Apply, run: Apply
) -> None:
    seen = folder / "seen"
    lay(folder, TABLE, "pass", head=f"{HEAD}open({str(seen)!r}, 'a').write(revision)\n")
    assert apply("--to", "r1").exit_code == 0
    assert run("status").exit_code == 3
    assert apply().exit_code == 0
    assert run("status").exit_code == 0
    first = folder / "db/versions/r1_x.py"
    first.write_text(first.read_text().replace("'s'", "'z'"))
    assert "edited" in run("status").output
    assert seen.read_text() == "r1r2"


@pytest.mark.parametrize(
    ("inside", "settings", "versions"),
    [
        ("", "[alembic]\nscript_location = %(here)s/db\n", "db/versions"),
        ("", "[alembic]\nscript_location = application/db\n", "db/versions"),
        ("", "[alembic]\nscript_location = application:db\n", "db/versions"),
        ("", "[alembic]\nfile_template = x\n", "db/versions"),
        ("", "[alembic]\nscript_location = {here}\n", "db/versions"),
        ("", "[alembic]\nscript_location = db\nversion_locations = db/here\n", "db/here"),
        ("db", "[alembic]\nscript_location = db\nversion_locations = db/here\n", "db/here"),
        ("db", "", "db/versions"),
        ("db/versions", "", "db/versions"),
        ("", "", "db/versions/postgresql"),
    ],
)
def test_revisions_are_found_wherever_they_are_looked_for(
    inside: str, settings: str, versions: str, tmp_path: Path
) -> None:
    root = tmp_path / "application"
    root.mkdir()
    lay(root, TABLE, env="import alembic", settings=settings, versions=versions)
    assert formats.recognise(root / inside) == "alembic"
    assert [one.version for one in formats.read([Folder("x", root / inside)])] == ["r1"]


def test_an_application_that_is_not_there_is_named_where_it_is_needed(
    folder: Path, apply: Apply, run: Apply
) -> None:
    lay(folder, TABLE, "import not_there_at_all")
    path = folder / "db/versions/r2_x.py"
    path.write_text("import not_there_at_all\nrevision = 'r2'\ndown_revision = 'r1'\n")
    assert apply("--to", "r1").exit_code == 0
    assert "pending" in run("status").output
    result = apply()
    assert result.exit_code == 1
    assert f"{path}: This needs the module not_there_at_all" in result.output


def test_alembics_operations_are_those_of_one_database_at_a_time(
    folder: Path, apply: Apply, ask: Any
) -> None:
    """They are one for the whole process, and a program goes on while another waits."""
    waits = "op.get_bind().execute(sa.text('SELECT pg_sleep(0.05)'))\n"
    lay(folder, f"{TABLE}\n{(waits + SAYS) * 3}")
    assert ask("CREATE SCHEMA a; CREATE SCHEMA b; SELECT 1")
    result = apply("--schemas", "?", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert ask("SELECT array_agg(s) FROM a.t") == ["a"] * 3
    assert ask("SELECT array_agg(s) FROM b.t") == ["b"] * 3


ENGINES = (
    "import sqlalchemy as sa\nfrom alembic import op\nrevision, down_revision = 'r1', None\n"
    "def upgrade(engine_name):\n    globals()[f'upgrade_{engine_name}']()\n"
    "def upgrade_shop():\n    op.execute('CREATE TABLE shop_t ()')\n"
    "def upgrade_users():\n    op.execute('CREATE TABLE users_t ()')\n"
)


def test_of_several_databases_in_one_folder_that_is_meant_which_is_named(
    folder: Path, apply: Apply, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(folder)
    (folder / "db/versions/r1_x.py").write_text(ENGINES)
    refused = " ".join(apply().output.split())
    assert "for each of several databases (shop, users)" in refused
    assert "TOLLBOOK_ALEMBIC_DATABASE=shop" in refused
    monkeypatch.setenv("TOLLBOOK_ALEMBIC_DATABASE", "users")
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('users_t') IS NOT NULL AND to_regclass('shop_t') IS NULL")


def test_a_history_of_branches_is_taken_over_with_what_their_labels_stand_for(
    folder: Path, run: Apply, apply: Apply, ask: Any
) -> None:
    lay(folder, versions="db/versions")
    places = {
        "root0000": "None",
        "left0000": "'root0000'\nbranch_labels = 'left'",
        "right000": "'root0000'\ndepends_on = 'left'",
        "other000": "None\nbranch_labels = ('other',)",
        "later000": "'other@head'.replace('@head', '000')",
    }
    for name, place in places.items():
        text = f"{IMPORTS}revision = '{name}'\ndown_revision = {place}\n"
        text += f"def upgrade():\n    op.execute('CREATE TABLE {name} ()')\n"
        (folder / f"db/versions/{name}_x.py").write_text(text)
    ask(
        "CREATE TABLE root0000 (); CREATE TABLE left0000 (); CREATE TABLE right000 ();"
        "CREATE TABLE other000 ();"
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);"
        "INSERT INTO alembic_version VALUES ('right000'), ('other000'); SELECT 1"
    )
    taken = run("baseline", "--auto")
    assert "4 taken over from Alembic" in taken.output, taken.output
    assert apply().exit_code == 0
    assert run("baseline", "--back", "--auto").exit_code == 0
    assert ask("SELECT array_agg(version_num ORDER BY version_num) FROM alembic_version") == [
        "later000",
        "right000",
    ]
