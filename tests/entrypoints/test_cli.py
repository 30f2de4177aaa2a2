"""The command line: what it answers, how it refuses, and its exit codes, as a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.running import COMMAND_SECONDS_MAX, run
from tollbook.books.payments import payments, tokens
from tollbook.books.payments.payments import Offer, Payment
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.embedded import Server

NOWHERE = "postgresql://tollbook:hunter2@127.0.0.1:1/tollbook"


async def sell(url: str, nonce: int) -> tuple[Payment, tokens.Grant]:
    """A settled payment and its token."""
    now = clock.now()
    offer = Offer(
        network="eip155:31337",
        chain="local",
        asset="0x" + "5f" * 20,
        decimals=6,
        amount=10_000,
        from_address="0x" + "aa" * 20,
        to_address="0x" + "bb" * 20,
        nonce=f"0x{nonce:064x}",
        tx_hash=None,
        scheme="exact",
        endpoint="GET /weather",
        requests_allocated=5,
        lifetime=timedelta(hours=1),
        valid_before=now + timedelta(minutes=1),
    )
    async with Database(url) as database, database.write() as tx:
        payment = await payments.reserve(tx, offer, now=now)
        settled = await payments.settle(
            tx,
            payment.payment_id,
            tx_hash=f"0x{nonce:064x}",
            block_number=1,
            confirmations=1,
            now=now,
        )
        return settled, await tokens.issue(tx, payment.payment_id, now=now)


def test_help_names_every_command_and_loads_none_of_the_heavy_parts() -> None:
    code = (
        "import sys; from tollbook.entrypoints import cli; code = cli.run(['--help']); "
        "print(sorted({'x402', 'psycopg', 'web3', 'fastapi', 'rich', 'pglast'} & set(sys.modules)), code)"
    )
    helped = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX
    )
    for name in ("up", "worker", "doctor", "keys", "facilitator", "payments", "tokens", "migrate"):
        assert f"\n  {name} " in helped.stdout
    assert helped.stdout.endswith("[] 0\n"), helped.stdout[-200:]


def test_a_list_loads_nothing_that_asks_chains_or_serves(database_url: str) -> None:
    """Or else every look at the books takes a second more."""
    lists = [["payments", "list"], ["tokens", "list"], ["settlement", "list"], ["webhooks", "list"]]
    code = (
        "import sys; from tollbook.entrypoints import cli; "
        f"codes = [cli.run([*one, '--database-url', {database_url!r}]) for one in {lists}]; "
        "heavy = {'x402', 'web3', 'eth_account', 'solders', 'aiohttp', 'httpx', 'fastapi'}; "
        "print(sorted(heavy & set(sys.modules)), codes)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX
    )
    assert listed.stdout.endswith("[] [0, 0, 0, 0]\n"), listed.stdout[-200:]


def test_payments_are_listed_and_shown_as_json(database_url: str) -> None:
    payment, _ = asyncio.run(sell(database_url, 1))
    listed = run("payments", "list", "--json", "--database-url", database_url)
    assert listed.returncode == 0, listed.stderr
    (row,) = json.loads(listed.stdout)
    assert row["payment_id"] == payments.show(payment.payment_id)
    assert (row["amount"], row["amount_usdc"], row["status"]) == ("10000", "0.01", "verified")
    shown = run("payments", "show", row["payment_id"], "--json", "--database-url", database_url)
    assert json.loads(shown.stdout) == row


def test_the_url_may_come_from_the_environment(database_url: str) -> None:
    listed = run("payments", "list", "--json", DATABASE_URL=database_url)
    assert (listed.returncode, listed.stdout) == (0, "[]\n"), listed.stderr


def test_payments_are_listed_as_a_table_for_people(database_url: str) -> None:
    payment, _ = asyncio.run(sell(database_url, 2))
    listed = run("payments", "list", "--database-url", database_url)
    assert payments.show(payment.payment_id) in listed.stdout
    assert "0/5" in listed.stdout
    assert "\x1b[" not in listed.stdout  # colours are for terminals


def test_a_payer_filter_leaves_others_out(database_url: str) -> None:
    asyncio.run(sell(database_url, 3))
    other = run("payments", "list", "--json", "--from", "0x" + "cc" * 20, "--database-url", database_url)
    assert json.loads(other.stdout) == []


def test_stats_tell_what_was_settled(database_url: str) -> None:
    asyncio.run(sell(database_url, 4))
    (stats,) = json.loads(run("payments", "stats", "--json", "--database-url", database_url).stdout)
    assert (stats["chain"], stats["total_payments"]) == ("local", 1)


def test_a_token_is_revoked_once_and_its_secret_is_never_shown(database_url: str) -> None:
    _, grant = asyncio.run(sell(database_url, 5))
    shown = tokens.show(grant.token.token_id)
    first = run("tokens", "revoke", shown, "--json", "--database-url", database_url)
    assert json.loads(first.stdout)["revoked_at"]
    again = run("tokens", "revoke", shown, "--database-url", database_url)
    assert again.returncode == 1
    assert "revoked" in again.stderr
    listed = run("tokens", "list", "--json", "--database-url", database_url)
    assert json.loads(listed.stdout)[0]["revoked_at"]
    assert grant.secret not in listed.stdout + first.stdout + again.stderr


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(database_url: str) -> None:
    url = ("--database-url", database_url)
    made = json.loads(run("keys", "create", "ci", "--scope", "payments:read", "--json", *url).stdout)
    listed = run("keys", "list", "--json", *url)
    assert [key["key_id"] for key in json.loads(listed.stdout)] == [made["key_id"]]
    assert made["secret"] not in listed.stdout
    assert json.loads(run("keys", "revoke", made["key_id"], "--json", *url).stdout)["revoked_at"]
    assert run("keys", "revoke", made["key_id"], *url).returncode == 1


def test_a_scope_that_is_none_is_refused(database_url: str) -> None:
    wrong = run("keys", "create", "ci", "--scope", "everything", "--database-url", database_url)
    assert wrong.returncode == 2
    assert "payments:read" in wrong.stderr


def test_a_refusal_is_one_line_on_standard_error(database_url: str) -> None:
    refused = run("payments", "show", "pay_0000000000000", "--database-url", database_url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert "tollbook payments list" in refused.stderr


def test_a_refusal_is_an_object_for_programs(database_url: str) -> None:
    refused = run("payments", "show", "pay_0000000000000", "--json", "--database-url", database_url)
    told = json.loads(refused.stderr)
    assert (told["error"], told["exit_code"], refused.returncode) == ("payment-unknown", 1, 1)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    refused = run("payments", "list", "--database-url", NOWHERE)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "127.0.0.1:1" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_a_database_without_our_tables_says_what_to_run(postgres: Server) -> None:
    refused = run("payments", "list", "--database-url", postgres.url("postgres"))
    assert refused.returncode == 1
    assert "tollbook migrate apply" in refused.stderr


def test_memory_storage_has_nothing_to_read() -> None:
    refused = run("payments", "list", TOLLBOOK_STORAGE="memory")
    assert refused.returncode == 1
    assert "--database-url" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("payments", "show", "tok_0000000000000"),
        ("payments", "list", "--limit", "0"),
        ("up", "leasing"),
        ("up", "--port", "99999"),
        ("nonsense",),
        ("facilitator", "--rpc", "base"),
        ("facilitator", "--rpc", "base=http://127.0.0.1:1", "--confirmations", "base=0"),
        ("facilitator", "--rpc", "base=http://127.0.0.1:1", "--confirmations", "6"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    wrong = run(*arguments)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr


def test_a_setting_that_cannot_be_used_is_named() -> None:
    wrong = run("payments", "list", TOLLBOOK_STORAGE="tape")
    assert wrong.returncode == 2
    assert "storage" in wrong.stderr


def test_a_closed_pipe_is_quiet(database_url: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = "from tollbook.entrypoints.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", command, "payments", "list", "--json", "--database-url", database_url],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=COMMAND_SECONDS_MAX,
    )
    os.close(writer)
    assert ran.stderr == b""
    assert ran.returncode == 1


def test_ctrl_c_is_quiet() -> None:
    code = (
        "import os, signal, click; from tollbook.entrypoints import cli\n"
        "@cli.tollbook.command('wait')\n"
        "def wait(): os.kill(os.getpid(), signal.SIGINT)\n"
        "raise SystemExit(cli.run(['wait']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=COMMAND_SECONDS_MAX)
    assert (ran.returncode, ran.stdout, ran.stderr.strip()) == (128 + signal.SIGINT, b"", b"")


def test_the_operators_key_must_not_be_open_to_others(tmp_path: Path) -> None:
    key = tmp_path / "operator.key"
    key.write_text("0x" + "11" * 32)
    key.chmod(0o644)
    refused = run("facilitator", "--rpc", "local=http://127.0.0.1:1", "--key-file", str(key))
    assert refused.returncode == 1
    assert "chmod 600" in refused.stderr
    assert "1111" not in refused.stderr
