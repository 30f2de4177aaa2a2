"""The operator's commands: what they say, and how they end."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import click
import httpx
import pytest
from eth_account.signers.local import LocalAccount

from fixtures.authorizations import transfer
from fixtures.reconciling import AMOUNT, Shop
from tollbook.books.payments import payments
from tollbook.books.payments.reconciler.cli import Moment
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock, keys
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain
from tollbook.entrypoints import cli
from tollbook.entrypoints.api import create_api
from tollbook.entrypoints.worker import JOBS

PURSE = 1_000_000_000


@pytest.fixture
async def shop(
    database: Database,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shop]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        bank = chain.make_account(amount=PURSE, wei=GAS_MONEY_WEI)
        made = Shop(database, chain, node, payer, chain.make_account(), bank)
        key_file = tmp_path / "operator.key"
        key_file.touch(mode=0o600)
        key_file.write_text("0x" + bank.key.hex().removeprefix("0x"))
        payee = {"network": NETWORK, "address": made.seller.address}
        monkeypatch.setenv("DATABASE_URL", database.url)
        monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps({NETWORK: chain.url}))
        monkeypatch.setenv("TOLLBOOK_PAYEES", json.dumps([payee]))
        monkeypatch.setenv("TOLLBOOK_FACILITATOR_KEY_FILE", str(key_file))
        yield made


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command in a thread of its own, as it has a loop of its own; its exit code and its output."""

    def call() -> int:
        try:
            return cli.run(["payments", *arguments])
        except SystemExit as end:
            return int(end.code or 0)

    capsys.readouterr()
    code = await asyncio.to_thread(call)
    return code, capsys.readouterr().out


async def age(shop: Shop) -> None:
    """What is looked at by these commands is some minutes old."""
    await shop.run(
        """
        UPDATE payments.x402_payments SET settled_at = settled_at - interval '5 minutes',
            verified_at = verified_at - interval '5 minutes'
        """
    )


async def test_differences_are_listed_accepted_and_told_by_the_exit_code(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(capsys, "reconcile") == (
        0,
        f"The books agree with {NETWORK}.\n0 rows and transfers looked at; 0 differences open.\n",
    )
    await shop.buy()
    await shop.run("DELETE FROM payments.x402_tokens")
    await age(shop)
    code, output = await run(capsys, "reconcile", "--json")
    report = json.loads(output)
    assert (code, report["open_count"], report["unreachable"]) == (3, 1, {})
    (seen,) = report["differences"]
    assert (seen["kind"], seen["status"]) == ("token_missing", "open")
    assert seen["payment_id"] == payments.show(shop.bought[0].payment_id)
    code, output = await run(capsys, "differences")
    assert code == 3
    assert "token_missing" in output
    accepted, _ = await run(capsys, "accept", seen["difference_id"], "--note", "he has it by mail")
    assert accepted == 0
    assert await run(capsys, "differences") == (0, "No open differences.\n")
    code, output = await run(capsys, "differences", "--all", "--json")
    assert [row["status"] for row in json.loads(output)] == ["accepted"]


async def test_a_silent_node_is_told_by_the_exit_code(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps({NETWORK: "http://127.0.0.1:9"}))
    code, output = await run(capsys, "reconcile", "--json")
    assert code == 1
    assert list(json.loads(output)["unreachable"]) == [NETWORK]
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", "{}")
    code, output = await run(capsys, "reconcile")
    assert code == 0
    assert "No chain was asked" in output


async def test_a_payment_is_refunded_in_whole_tokens(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shown = payments.show((await shop.buy()).payment_id)
    code, output = await run(capsys, "refund", shown, "--amount", "0.004", "--reason", "cold", "--json")
    assert (code, json.loads(output)["status"], json.loads(output)["amount"]) == (0, "done", "4000")
    for amount in ("0", "-1", "0.0000001", "all"):
        code, _ = await run(capsys, "refund", shown, "--amount", amount)
        assert code == 2
    code, _ = await run(capsys, "refund", shown, "--amount", "0.0061")
    assert code == 1
    code, output = await run(capsys, "refunds", "--payment", shown)
    assert code == 0
    assert "done" in output


async def test_a_refund_asked_for_over_http_is_sent_by_the_worker(shop: Shop) -> None:
    bought = await shop.buy()
    async with shop.database.write() as tx:
        scopes = ["payments:read", "payments:write"]
        grant = await keys.create(tx, name="test", scopes=scopes, now=clock.now())
    app = create_api(shop.database.url, PaymentsSettings(routes={}, payees=[], rpc_urls={}))
    path = f"/v1/payments/{payments.show(bought.payment_id)}/refunds"
    headers = {"Authorization": f"Bearer {grant.secret}", "Idempotency-Key": str(uuid.uuid4())}
    before = shop.chain.read_balance(shop.payer.address)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        asked = await client.post(path, json={"amount": "7"}, headers=headers)
        again = await client.post(path, json={"amount": "7"}, headers=headers)
        assert (asked.status_code, asked.json()["status"]) == (201, "requested")
        assert again.json() == asked.json()
        (job,) = [job for job in JOBS if job.name == "payments.send_refunds"]
        assert await job.run(shop.database) == 1
        listed = (await client.get(path, headers=headers)).json()["items"]
        assert [(refund["status"], refund["amount"]) for refund in listed] == [("done", "7")]
        for wrong in ({"amount": "0"}, {"amount": 1.5}, {"amount": str(AMOUNT)}, {"more": "x"}):
            refused = await client.post(
                path, json=wrong, headers=headers | {"Idempotency-Key": str(uuid.uuid4())}
            )
            assert refused.status_code in (409, 422)
        assert (await client.post(path, json={})).status_code == 401
    assert shop.chain.read_balance(shop.payer.address) == before + 7


async def test_the_jobs_reconcile_with_the_nodes_of_the_environment(shop: Shop) -> None:
    transfer(shop.chain, shop.payer, shop.seller.address, 5)
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    bought.signed.send(shop.chain)
    jobs = {job.name: job for job in JOBS}
    assert await jobs["payments.reconcile_open"].run(shop.database) == 0
    assert (await shop.payment(bought)).status == "verified"
    assert await jobs["payments.reconcile"].run(shop.database) == 0  # the transfer is too young


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-21", datetime(2026, 11, 21, tzinfo=UTC)),
        ("2026-11-21T14:00", datetime(2026, 11, 21, 14, tzinfo=UTC)),
        ("2026-11-21T14:00+02:00", datetime(2026, 11, 21, 12, tzinfo=UTC)),
    ],
)
def test_a_moment_is_read(text: str, moment: datetime) -> None:
    assert Moment().convert(text, None, None) == moment
    assert Moment().convert("2h", None, None) < clock.now()
    with pytest.raises(click.BadParameter):
        Moment().convert("yesterday", None, None)
