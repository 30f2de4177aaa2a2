"""Flyway's settings and callbacks: what they say is done as Flyway does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tollbook.migrate import Folder, formats
from tollbook.migrate.errors import FolderRefused
from tollbook.migrate.formats import flyway

from .test_formats import Files, lay

Run = Callable[..., Result]
ASKS = "CREATE TABLE t (a text DEFAULT '${Who}');"
SAYS: dict[str, Files] = {
    "flyway.conf": {"flyway.conf": "# flyway.table=no\nflyway.placeholders.who=me\n"},
    "a folder of settings": {"conf/flyway.conf": "flyway.placeholders.who = me\r\n"},
    "lines that go on": {
        "flyway.conf": "flyway.locations=filesystem:sql,\\\n  sql\nflyway.placeholders.who=me"
    },
    "the environment, from the settings": {"flyway.conf": "flyway.placeholders.who=${WHO_IT_IS}"},
    "flyway.toml": {"flyway.toml": '[flyway]\nmixed = true\n[flyway.placeholders]\nWho = "me"\n'},
    "an environment of flyway.toml": {
        "flyway.toml": '[environments.default.flyway.placeholders]\nwho = "${env.WHO_IT_IS}"\n'
    },
    "Spring's properties": {
        "src/main/resources/application.properties": "spring.flyway.placeholders.who=${NOT_SET_ANYWHERE:me}\n"
    },
    "Spring's YAML": {
        "application.yml": "spring:\n  # x\n  flyway:\n    enabled: 1\n    placeholders:\n      who: 'me'\n"
        "---\nspring:\n  flyway:\n    placeholders:\n      who: other\n"
    },
    "Spring's YAML of the test database": {
        "application.yaml": "spring.flyway:\n  placeholders.who: me # x\n  schemas:\n    - public\n"
    },
}


def read(folder: Path) -> str:
    return formats.read([Folder("shop", folder)])[0].up.text


@pytest.mark.parametrize("name", SAYS)
def test_placeholders_have_the_values_that_flyways_own_files_give_them(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO_IT_IS", "me")
    lay(folder, {"sql/db/V1__a.sql": ASKS} | SAYS[name])
    for inside in ("", "sql", "sql/db"):
        assert "DEFAULT 'me'" in read(folder / inside)
    monkeypatch.setenv("FLYWAY_PLACEHOLDERS_WHO", "you")
    assert "DEFAULT 'you'" in read(folder)


def test_what_is_repeated_runs_again_where_a_value_in_it_is_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sum_up() -> list[str]:
        return [one.up.checksum for one in formats.read([Folder("shop", folder)])]

    lay(folder, {"V1__a.sql": ASKS, "R__b.sql": ASKS, "R__c.sql": "SELECT 1"})
    monkeypatch.setenv("FLYWAY_PLACEHOLDERS_WHO", "me")
    before = sum_up()
    monkeypatch.setenv("FLYWAY_PLACEHOLDERS_WHO", "you")
    assert [one == other for one, other in zip(before, sum_up(), strict=True)] == [True, False, True]


def test_what_a_setting_leaves_open_is_refused_and_no_other_setting_is_shown(
    folder: Path, apply: Run
) -> None:
    lay(
        folder,
        {"V1__a.sql": ASKS, "flyway.conf": "flyway.password=s3cret\nflyway.placeholders.who=${NOT_SET_HERE}"},
    )
    output = " ".join(apply().output.split())
    assert "${Who} has no value" in output
    assert "FLYWAY_PLACEHOLDERS_WHO" in output
    assert "s3cret" not in output


@pytest.mark.parametrize(
    ("said", "file"),
    [
        ("flyway.placeholderReplacement=false", ""),
        ("flyway.placeholderPrefix=#[\nflyway.placeholderSuffix=]", ""),
        ("", "placeholderReplacement=false"),
    ],
)
def test_what_flyway_leaves_as_it_is_stays(said: str, file: str, folder: Path) -> None:
    lay(folder, {"V1__a.sql": ASKS, "flyway.conf": said, "V1__a.sql.conf": file})
    assert read(folder) == ASKS


def test_files_have_the_names_and_places_that_the_settings_say(folder: Path) -> None:
    lay(
        folder,
        {
            "flyway.conf": "flyway.locations=filesystem:./one,classpath:db/two\nflyway.sqlMigrationPrefix=\n"
            "flyway.callbackLocations=calls\nflyway.sqlMigrationSeparator=-\nflyway.sqlMigrationSuffixes=.ddl,.pgsql\n"
            "flyway.repeatableSqlMigrationPrefix=again\nflyway.placeholderPrefix=#{\n",
            "one/1.5-a.ddl": "CREATE TABLE #{flyway:table} ();",
            "one/again-v.pgsql": "SELECT 1",
            "one/V9__no.sql": "SELECT 9",
            "src/main/resources/db/two/2-b.pgsql": "SELECT 2",
            "three/3-c.ddl": "SELECT 3",
            "calls/afterMigrate-x.ddl": "SELECT 4",
        },
    )
    assert formats.recognise(folder) == "flyway"
    found = formats.read([Folder("shop", folder)])
    assert [one.label for one in found] == ["1.5-a", "2-b", "again-v", "afterMigrate-x"]
    assert found[0].up.text == "CREATE TABLE flyway_schema_history ();"


def test_objects_go_to_the_schema_that_the_settings_say_which_is_made_before(
    folder: Path, apply: Run, ask: Any
) -> None:
    lay(
        folder,
        {
            "flyway.conf": "flyway.schemas=Shop,extra\nflyway.initSql=SET timezone TO 'Asia/Tokyo'\n",
            "V1__a.sql": "CREATE TABLE a AS SELECT current_setting('timezone') AS zone;",
            "V2__b.sql": "CREATE TABLE extra.b ();\nSELECT nothing;",
        },
    )
    output = apply().output
    assert "V2__b.sql:2" in output
    assert ask('SELECT zone FROM "Shop".a') == "Asia/Tokyo"
    lay(folder, {"V2__b.sql": "CREATE TABLE extra.b (); CREATE TABLE b ();"})
    ask("CREATE SCHEMA tenant_1; SELECT 1")  # who names schemas means those
    result = apply("--schemas", "tenant_?", "--to", "1")
    assert result.exit_code == 0, result.output
    assert ask("SELECT to_regclass('tenant_1.a') IS NOT NULL")
    assert apply().exit_code == 0
    assert ask("""SELECT to_regclass('"Shop".b') IS NOT NULL AND to_regclass('extra.b') IS NOT NULL""")
    assert "Nothing to do" in apply().output


def test_each_migration_runs_between_what_flyway_calls_back_around_each(
    folder: Path, run: Run, apply: Run, ask: Any
) -> None:
    lay(
        folder,
        {
            "beforeEachMigrate.sql": "CREATE TABLE IF NOT EXISTS log (what text);\nSET work_mem TO '7MB'",
            "beforeEachMigrate__again.sql": "INSERT INTO log VALUES (current_setting('work_mem'));",
            "afterEachMigrate.sql": "INSERT INTO log VALUES ('after') -- no end",
            "V1__a.sql": "INSERT INTO log VALUES ('1');",
            "V2__b.sql": "INSERT INTO log VALUES ('2');\nCREATE TABLE b (i int);\n"
            "CREATE INDEX CONCURRENTLY b_i ON b (i);",
            "R__r.sql": "INSERT INTO log VALUES ('r');",
        },
    )
    result = apply()
    assert result.exit_code == 0, result.output
    said = "SELECT string_agg(what, ' ') FROM log"
    assert ask(said) == "7MB 1 after 7MB 2 after 7MB r after"
    lay(folder, {"V3__c.sql": "SELECT 3;", "afterEachMigrate.sql": "SELECT 1;\nSELECT nothing;"})
    assert "afterEachMigrate.sql:2" in apply().output
    lay(folder, {"V3__c.sql": "SELECT 3;\nSELECT nothing;"})
    assert "V3__c.sql:2" in apply().output
    assert "R__r" not in apply().output
    lay(folder, {"V3__c.sql": "SELECT 3;\nALTER TABLE b ADD j int;", "afterEachMigrate.sql": ""})
    assert "line 2: ALTER TABLE b" in run("plan", "--live").output


def test_what_flyway_calls_back_before_all_runs_before_whatever_is_pending(
    folder: Path, run: Run, apply: Run, ask: Any
) -> None:
    lay(
        folder,
        {
            "beforeMigrate.sql": "CREATE TABLE IF NOT EXISTS log (what text);\nSET statement_timeout TO '7s';"
            "\n"
            "SET LOCAL search_path TO nowhere;\nINSERT INTO public.log VALUES ('before');",
            "afterVersioned.sql": "INSERT INTO log VALUES ('versioned');",
            "beforeRepeatables.sql": "INSERT INTO log VALUES ('repeatables');",
            "V1__a.sql": "INSERT INTO log VALUES (current_setting('statement_timeout'));",
            "R__r.sql": "INSERT INTO log VALUES ('r');",
        },
    )
    assert apply("--to", "1").exit_code == 0
    said = "SELECT string_agg(what, ' ') FROM log"
    assert ask(said) == "before 7s"
    assert apply().exit_code == 0
    assert ask(said) == "before 7s before versioned repeatables r"
    assert "Nothing to do" in apply().output
    assert run("status").exit_code == 0
    lay(folder, {"V2__b.sql": "INSERT INTO log VALUES ('2');"})
    lines = [line.split() for line in run("status").output.splitlines()]
    lines = [words[1] for words in lines if words[:1] == ["pending"]]
    assert lines == ["shop/beforeMigrate", "shop/V2__b", "shop/afterVersioned"]
    assert apply().exit_code == 0
    assert str(ask(said)).endswith("r before 2 versioned")


def test_a_callback_that_runs_when_a_run_fails_is_named(folder: Path) -> None:
    lay(folder, {"V1__a.sql": ASKS, "afterMigrateError.sql": "SELECT 1"})
    with pytest.raises(FolderRefused, match=r"afterMigrateError\.sql"):
        read(folder)
    lay(folder, {"flyway.conf": "flyway.skipDefaultCallbacks=true\nflyway.placeholderReplacement=false"})
    assert read(folder) == ASKS


def test_a_file_that_is_not_to_be_executed_is_left_out(folder: Path) -> None:
    lay(folder, {"V1__a.sql": "SELECT 1", "V2__b.sql": "SELECT 2", "V2__b.sql.conf": "shouldExecute=false"})
    assert len(formats.read([Folder("shop", folder)])) == 1
    lay(folder, {"V2__b.sql.conf": "shouldExecute=${deploy}==true"})
    refusal = formats.read([Folder("shop", folder)])[1].up.refusal
    assert refusal is not None
    assert "shouldExecute" in refusal.what


def test_flyway_sums_what_repeats_with_the_values_in_it(folder: Path, run: Run, ask: Any) -> None:
    lay(folder, {"V1__a.sql": "SELECT 1", "R__v.sql": ASKS, "flyway.conf": "flyway.placeholders.who=me"})
    lay(folder.parent, {"filled.sql": ASKS.replace("${Who}", "me")})
    sums = [flyway.compute_checksum(one) for one in (folder / "V1__a.sql", folder.parent / "filled.sql")]
    ask(
        f"""CREATE TABLE t (a text); CREATE TABLE flyway_schema_history (installed_rank int, version text,
            type text, script text, checksum int, success boolean);
        INSERT INTO flyway_schema_history VALUES (1, '1', 'SQL', 'V1__a.sql', {sums[0]}, true),
            (2, NULL, 'SQL', 'R__v.sql', {sums[1]}, true); SELECT 1"""
    )
    lay(folder, {"afterMigrate.sql": "SELECT 1", "beforeMigrate.sql": "SELECT 1"})
    taken = run("baseline", "--auto")
    assert "2 taken over from Flyway" in taken.output, taken.output
    assert run("apply", "--auto", "--skip-backup").exit_code == 0  # what Flyway calls back it does not keep
    assert "0 told" in run("baseline", "--back", "--auto").output


def test_a_file_that_comes_late_runs_where_flyway_is_told_to_run_it(
    folder: Path, apply: Run, ask: Any
) -> None:
    lay(folder, {"V1__a.sql": "SELECT 1", "V3__c.sql": "SELECT 3"})
    assert apply().exit_code == 0
    lay(folder, {"V2__b.sql": "CREATE TABLE b ();"})
    assert "comes before shop/V3__c" in apply().output
    lay(folder, {"flyway.toml": "flyway.outOfOrder = true"})
    assert apply().exit_code == 0
    assert ask("SELECT to_regclass('b') IS NOT NULL")
