"""Dry runs say what would happen and leave nothing behind; the worker carries out by itself, or rehearses."""

import asyncio
from typing import Any

import pytest

from fixtures.lanes import key_of
from fixtures.settling import DEAF, Payroll, later, make_payroll
from tollbook.books.settlement import jobs, requests
from tollbook.books.settlement.dry_run import Forecast, simulate
from tollbook.books.settlement.requests import CommandRequest, Order
from tollbook.books.settlement.settings import Asset, Limits, SettlementSettings
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain

ODD = "0x" + "0e" * 20
PAYEE = "0x" + "ab" * 20


@pytest.fixture
def payroll(database: Database, chain: LocalChain, token: str, monkeypatch: pytest.MonkeyPatch) -> Payroll:
    """One whose key and node are in the environment."""
    assert token
    made = make_payroll(database, chain)
    monkeypatch.setenv("TOLLBOOK_FACILITATOR_KEY", key_of(made.operators[0]))
    made.settings = made.settings.model_copy(
        update={
            "settlement_assets": {"local": {"ODD": Asset(address=ODD, decimals=0)}},
            "settlement_limits": {"local": {"USDC": Limits(day="900")}},  # pyright: ignore[reportArgumentType]
        }
    )
    return made


def order(amount: str, **changes: Any) -> Order:
    fields: dict[str, Any] = {"command_id": f"dry-{amount}", "asset_symbol": "USDC", "payee": PAYEE}
    return requests.read(CommandRequest(amount=amount, **(fields | changes)))


async def test_a_dry_run_says_what_would_become_of_each_and_leaves_nothing_behind(
    payroll: Payroll, chain: LocalChain
) -> None:
    chain.call("anvil_setCode", ODD, DEAF)
    told = await simulate(
        payroll.database,
        payroll.settings,
        [
            order("600"),
            order("400"),
            order("1", asset_symbol="GOLD"),
            order("1", asset_symbol="ODD"),
            order("2", asset_symbol="ODD", expires_at=later(-1)),
            order("100000", asset_symbol="ETH"),
        ],
    )
    sender = payroll.operators[0].address.lower()
    limits = "this environment's"
    assert told[0] == Forecast(
        "dry-600", "be sent", None, NETWORK, chain.ensure_token(), PAYEE, 600_000_000, sender, limits
    )
    assert [one.would for one in told[1:]] == ["be refused"] * 4 + ["wait"]
    wanted = ["day's limit", "GOLD", "revert", "time is over", "can send"]
    assert [word in str(one.reason) for one, word in zip(told[1:], wanted, strict=True)] == [True] * 5
    async with payroll.database.read() as tx:
        assert await tx.value("SELECT count(*) FROM settlement.spending") == 0
        assert await tx.value("SELECT count(*) FROM settlement.settlement_commands") == 0


async def test_a_dry_run_has_the_limits_of_the_worker_whatever_its_own_environment_says(
    payroll: Payroll,
) -> None:
    await payroll.validate()
    unlimited = payroll.settings.model_copy(update={"settlement_limits": {}})
    [told] = await simulate(payroll.database, unlimited, [order("901")])
    assert (told.would, told.limits) == ("be refused", "the worker's")


async def test_a_dry_run_without_a_key_or_a_node_says_so(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollbook.core.lanes.node.CONNECT_SECONDS_MAX", 0.5)
    nowhere = payroll.settings.model_copy(update={"rpc_urls": {NETWORK: "http://127.0.0.1:9"}})
    [told] = await simulate(payroll.database, nowhere, [order("1")])
    assert (told.would, "no usable answer" in str(told.reason)) == ("wait", True)
    monkeypatch.delenv("TOLLBOOK_FACILITATOR_KEY")
    [told] = await simulate(payroll.database, payroll.settings, [order("1")])
    assert (told.would, "operator's key" in str(told.reason)) == ("wait", True)


async def test_the_worker_carries_commands_out_by_itself_and_stops_when_told(payroll: Payroll) -> None:
    stop = asyncio.Event()
    working = asyncio.create_task(jobs.work(payroll.database, payroll.settings, stop))
    ids = [await payroll.order("1"), await payroll.order("1000")]
    found = await payroll.wait_for(*ids)
    stop.set()
    await asyncio.wait_for(working, 60)
    assert [one.status for one in found] == ["settled", "refused"]
    assert len(payroll.list_transfers()) == 1


async def test_in_a_dry_run_of_the_whole_book_nothing_is_sent_and_each_command_says_what_would_be(
    payroll: Payroll,
) -> None:
    ids = [await payroll.order("1"), await payroll.order("5000", asset_symbol="ETH")]
    await payroll.validate()
    async with payroll.open_desk(dry_run=True) as desk:
        assert await desk.send() == 2
        assert await desk.send() == 0
    found = [await payroll.get(one) for one in ids]
    assert {one.status for one in found} == {"validated"}
    assert found[0].error == f"Dry run: it would be sent from {desk.lanes.addresses[0]}."
    assert "can send" in str(found[1].error)
    assert payroll.list_transfers() == []


async def test_a_worker_without_a_key_validates_and_one_without_a_node_touches_nothing(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOLLBOOK_FACILITATOR_KEY")
    for settings, status in ((SettlementSettings(), "received"), (payroll.settings, "validated")):
        stop, command_id = asyncio.Event(), await payroll.order("1")
        working = asyncio.create_task(jobs.work(payroll.database, settings, stop))
        await asyncio.sleep(0.3)
        while (await payroll.get(command_id)).status != status:
            assert not working.done()
        stop.set()
        await asyncio.wait_for(working, 60)
        assert (await payroll.get(command_id)).status == status
