"""Backups encrypted, in parallel, in buckets: each comes back as it was, and damage is found."""

import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.backups import (
    SHOP_ROWS,
    SHOP_TABLES,
    ask,
    execute,
    read_all,
    read_databases,
    refused,
    run_as_admin,
)
from tollbook.embedded import Server
from tollbook.migrate import age, keys
from tollbook.migrate.backup import Backup, backup
from tollbook.migrate.errors import BackupFailed, RestoreFailed, VerificationFailed, WrongUsage
from tollbook.migrate.places import Folder
from tollbook.migrate.restore import restore
from tollbook.migrate.retention import backups
from tollbook.migrate.trial import EMBEDDED, OWN, try_out

SECRET = age.generate()
WORDS = age.Passphrase("correct horse battery")


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """The address of an S3 store on this machine."""
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as ran:
        assert ran.stderr is not None
        line = next(line for line in ran.stderr if "Running on" in line)
        yield line.split("Running on ")[1].split()[0]
        ran.kill()


@pytest.fixture
def bucket(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in a bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": store,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "hush",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{store}/shop-backups", method="PUT", data=b""))
    return f"s3://shop-backups/{tmp_path.name}"


def bend(made: Backup, place: int) -> None:
    content = bytearray(made.path.read_bytes())
    content[place] ^= 1
    made.path.write_bytes(content)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([0, 1, 65_535, 65_536, 65_537, 131_072]))
def test_what_is_encrypted_is_decrypted(data: bytes, more: int) -> None:
    content = data + bytes(more)
    sealed = b"".join(age.encrypt([content[:9], content[9:]], SECRET.recipient))
    assert b"".join(age.decrypt(io.BytesIO(sealed).read, SECRET)) == content
    with pytest.raises(age.NotDecrypted):
        b"".join(age.decrypt(io.BytesIO(sealed[:-1]).read, SECRET))
    with pytest.raises(age.NotDecrypted):
        b"".join(age.decrypt(io.BytesIO(sealed).read, age.generate()))


def test_the_format_is_that_of_age() -> None:
    theirs = pyrage.x25519.Identity.from_str(SECRET.write())
    assert str(theirs.to_public()) == str(SECRET.recipient)
    content = os.urandom(200_000)
    assert pyrage.decrypt(b"".join(age.encrypt([content], SECRET)), [theirs]) == content
    sealed = pyrage.encrypt(content, [theirs.to_public()])
    assert b"".join(age.decrypt(io.BytesIO(sealed).read, SECRET)) == content
    assert pyrage.passphrase.decrypt(b"".join(age.encrypt([content], WORDS)), WORDS.words) == content
    sealed = pyrage.passphrase.encrypt(content, WORDS.words)
    assert b"".join(age.decrypt(io.BytesIO(sealed).read, WORDS)) == content


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("key", [None, SECRET, WORDS], ids=["plain", "key", "passphrase"])
def test_a_backup_of_every_form_comes_back(
    books: str, tmp_path: Path, jobs: int, key: age.Key | None
) -> None:
    before = read_all(books)
    made = backup(books, tmp_path, jobs=jobs, key=key)
    assert sorted(tmp_path.iterdir()) == [made.path, made.path.with_name(f"{made.path.name}.json")]
    assert (b"shop" in made.path.read_bytes()) == (key is None)
    execute(books, "DELETE FROM shop.sales")
    done = restore(books, made.path, jobs=jobs, key=key)
    assert (done.tables, done.rows) == (SHOP_TABLES, SHOP_ROWS)
    assert read_all(books) == before


def test_a_role_that_may_not_create_databases_restores_encrypted_ones_too(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    before = read_all(books)
    made = backup(books, tmp_path, key=SECRET)
    run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
    bent = made.path.read_bytes()
    bend(made, -5)
    execute(books, "CREATE TABLE later (id int)")
    after = read_all(books)
    with refused(RestoreFailed, "changed or cut off"):
        restore(books, made.path, key=SECRET)
    assert read_all(books) == after
    made.path.write_bytes(bent)
    restore(books, made.path, key=SECRET)
    assert read_all(books) == before


def test_a_bent_or_cut_encrypted_file_never_takes_a_place(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    made = backup(books, tmp_path, key=SECRET)
    whole, before = made.path.read_bytes(), read_all(books)
    for damaged in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
    ):
        made.path.write_bytes(damaged)
        with refused(RestoreFailed):
            restore(books, made.path, key=SECRET)
    assert read_all(books) == before
    assert read_databases(backup_server) == {"books"}


def test_without_the_secret_nothing_is_read(books: str, tmp_path: Path) -> None:
    made = backup(books, tmp_path, key=SECRET.recipient)
    for key in (None, SECRET.recipient):
        with refused(RestoreFailed, "is encrypted", "--key-file"):
            restore(books, made.path, key=key)
    for key in (age.generate(), WORDS):
        with refused(RestoreFailed, "is not the one it was encrypted for"):
            restore(books, made.path, key=key)


def test_secrets_come_from_files_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keys.create_key_file(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert keys.find(key_file=tmp_path / "key") == made
    (tmp_path / "public").write_text(f"# mine\n{made.recipient}\n")
    assert keys.find(key_file=tmp_path / "public") == made.recipient
    (tmp_path / "words").write_text("four words are better\n")
    monkeypatch.setenv("TOLLBOOK_BACKUP_PASSPHRASE_FILE", str(tmp_path / "words"))
    assert keys.find() == age.Passphrase("four words are better")
    monkeypatch.setenv("TOLLBOOK_BACKUP_PASSPHRASE", "other words, longer")
    assert keys.find() == age.Passphrase("other words, longer")
    assert "other words" not in repr(keys.find())
    with refused(WrongUsage, "is not there yet"):
        keys.create_key_file(tmp_path / "key")
    with refused(WrongUsage, "8 characters"):
        keys.make_passphrase("short")
    text = str(made.recipient)
    (tmp_path / "public").write_text(text[:-1] + ("p" if text[-1] == "q" else "q"))
    with pytest.raises(WrongUsage, match="typing error"):
        keys.find(key_file=tmp_path / "public")


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("key", [None, SECRET], ids=["plain", "key"])
def test_a_backup_in_a_bucket_comes_back(books: str, bucket: str, jobs: int, key: age.Key | None) -> None:
    before = read_all(books)
    made = backup(books, bucket, jobs=jobs, key=key)
    assert made.location.startswith(bucket)
    assert [(one.location, one.wrong) for one in backups(bucket)] == [(made.location, None)]
    execute(books, "DELETE FROM shop.sales")
    assert restore(books, made.location, jobs=jobs, key=key).rows == SHOP_ROWS
    assert read_all(books) == before
    again = backup(books, bucket, key=key, keep=1)
    assert again.removed == (made.location,)
    assert [one.location for one in backups(bucket)] == [again.location]
    assert try_out(books, again.location, key=key).rows == SHOP_ROWS


def test_a_backup_that_fails_leaves_nothing_in_the_bucket(
    backup_server: Server, books: str, bucket: str, store: str
) -> None:
    run_as_admin(backup_server, "ALTER ROLE tollbook RESET ALL")
    execute(
        backup_server.url("books", user="postgres"),
        "CREATE FUNCTION x() RETURNS int RETURN 1; CREATE SCHEMA no; CREATE TABLE no.go (id int)",
    )
    with refused(BackupFailed, "permission denied"):
        backup(books, bucket)
    assert backups(bucket) == []
    with urllib.request.urlopen(f"{store}/shop-backups?uploads") as answer:
        assert b"<Upload>" not in answer.read()


def test_a_bucket_that_is_not_there_is_said(books: str, bucket: str) -> None:
    with refused(BackupFailed, "no-such-bucket"):
        backup(books, "s3://no-such-bucket/here")


def test_old_backups_go_and_what_is_not_ours_stays(backup_server: Server, books: str, tmp_path: Path) -> None:
    execute(backup_server.url(), "CREATE DATABASE books_other")
    other = backup(backup_server.url("books_other"), tmp_path)
    strange = {tmp_path / "books_notes.dump", tmp_path / "books.json"}
    for path in strange:
        path.write_text("{}")
    first, second = backup(books, tmp_path), backup(books, tmp_path)
    second.path.write_bytes(b"torn")
    third = backup(books, tmp_path, keep=2)
    assert third.removed == ()  # the first is the second good one
    fourth = backup(books, tmp_path, keep=2)
    assert set(fourth.removed) == {first.location, second.location}
    left = {one.path for one in (other, third, fourth)}
    assert set(tmp_path.iterdir()) == left | {Path(f"{path}.json") for path in left} | strange


def test_a_backup_tried_out_is_compared_and_dropped(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    made = backup(books, tmp_path)
    done = try_out(books, made.path)
    assert (done.where, done.rows, done.objects["trigger"]) == (OWN, SHOP_ROWS, 1)
    assert read_databases(backup_server) == {"books"}
    (listed,) = backups(tmp_path)
    assert listed.manifest.trial is not None
    assert listed.manifest.trial.seconds == done.seconds
    expected = max(1.0, done.seconds)
    assert backup(books, tmp_path).manifest.restore_seconds == pytest.approx(expected, rel=0.2)


def test_without_the_right_to_create_it_is_tried_on_a_throw_away_server(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    made = backup(books, tmp_path, key=SECRET)
    run_as_admin(backup_server, "ALTER ROLE tollbook NOCREATEDB")
    done = try_out(books, made.path, key=SECRET)
    assert (done.where, done.rows) == (EMBEDDED, SHOP_ROWS)


def test_a_backup_that_lacks_something_is_not_passed(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    made = backup(books, tmp_path)
    beside = tmp_path / made.manifest.name
    told = json.loads(beside.read_text())
    told["contents"]["tables"]["shop.buyers"] = 501
    told["contents"]["objects"]["view"] = 2
    beside.write_text(json.dumps(told))
    with refused(VerificationFailed, "shop.buyers has 501 rows in the backup and 500", "has 2 of kind view"):
        try_out(books, made.path)
    assert read_databases(backup_server) == {"books"}


def test_grants_come_back_where_the_roles_are(backup_server: Server, books: str, tmp_path: Path) -> None:
    run_as_admin(backup_server, 'CREATE ROLE reader; CREATE ROLE leaver; CREATE ROLE "odd \'one"')
    try:
        execute(
            books,
            """
            GRANT USAGE ON SCHEMA shop TO reader, leaver; GRANT SELECT ON shop.buyers TO reader, leaver;
            GRANT UPDATE (name) ON shop.buyers TO "odd 'one" WITH GRANT OPTION;
            REVOKE EXECUTE ON FUNCTION total() FROM PUBLIC;
            ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO reader;
            ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO leaver;
            """,
        )
        made = backup(books, tmp_path)
        run_as_admin(backup_server, "ALTER ROLE leaver RENAME TO left_us")
        for into in ("books_again", None):
            done = restore(books, made.path, into=into)
            assert (done.missing_roles, done.lost_grants) == (("leaver",), ())
            url = backup_server.url(done.database)
            assert "odd 'one" in str(ask_acl(url, "shop.buyers"))
            assert "reader=r" in str(ask_acl(url, "shop.buyers"))
            execute(url, "CREATE TABLE shop.newer (id int)")
            assert "reader=r" in str(ask_acl(url, "shop.newer"))
    finally:
        for name in read_databases(backup_server):
            execute(
                backup_server.url(name, user="postgres"),
                'DROP OWNED BY reader, "odd \'one"; DROP OWNED BY left_us',
            )
        run_as_admin(backup_server, 'DROP ROLE reader; DROP ROLE left_us; DROP ROLE "odd \'one"')


def ask_acl(url: str, table: str) -> object:
    return ask(
        url,
        f"""SELECT relacl::text || coalesce((SELECT string_agg(attacl::text, '') FROM pg_attribute
                                             WHERE attrelid = c.oid), '')
        FROM pg_class AS c WHERE oid = '{table}'::regclass""",
    )


def test_the_counts_are_of_the_dumps_own_moment(books: str, tmp_path: Path) -> None:
    """A shop that sells all the while: the manifest fits the dump all the same."""
    code = """
import sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print("selling", flush=True)
    for number in range(100_000):
        connection.execute("INSERT INTO shop.buyers (name) VALUES ('one more')")
        connection.execute("DELETE FROM parent")
"""
    command = [sys.executable, "-c", code, books]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as seller:
        assert seller.stdout is not None
        seller.stdout.readline()
        try:
            made = [backup(books, tmp_path / str(number), jobs=number) for number in (1, 2)]
        finally:
            seller.kill()
            seller.wait()
    for one in made:
        assert one.manifest.contents.tables["shop.buyers"] >= 500
        try_out(books, one.path)


def test_what_the_server_does_not_let_us_grant_is_named(
    backup_server: Server, books: str, tmp_path: Path
) -> None:
    admin = backup_server.url("books", user="postgres")
    execute(admin, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    made = backup(books, tmp_path)
    assert made.manifest.system == "unknown"  # the cluster's number is closed to us
    done = restore(books, made.path)
    assert done.rows == SHOP_ROWS
    (lost,) = done.lost_grants
    assert lost == 'no privileges could be revoked for "pg_control_system"'


def test_older_ones_that_cannot_go_do_not_make_the_new_one_bad(
    books: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(books, tmp_path)

    def fail(self: Folder, name: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Folder, "remove", fail)
    with refused(BackupFailed, "is made and good", "Permission denied"):
        backup(books, tmp_path, keep=1)
    assert [one.wrong for one in backups(tmp_path)] == [None, None]
