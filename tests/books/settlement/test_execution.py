"""Execution on a real chain: what is validated is paid once, and what the chain shows decides the end."""

import asyncio
from datetime import timedelta
from typing import Any, LiteralString

import pytest

from fixtures.settling import DEAF, FICKLE, SILENT, Payroll, later, make_payroll, order_odd
from tollbook.books.settlement import commands, due, endings, execution, limits, validation
from tollbook.books.settlement.errors import CommandNotInState
from tollbook.books.settlement.settings import Limits
from tollbook.core import clock
from tollbook.core.database import Database, Params, Row, WriteTx
from tollbook.core.errors import Refusal
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, TOKEN_ADDRESS, LocalChain


@pytest.fixture
def payroll(database: Database, chain: LocalChain, token: str) -> Payroll:
    """Commands of the test's own, paid in dollars by an account of its own."""
    assert token
    return make_payroll(database, chain)


async def test_a_command_is_validated_paid_and_settled_with_its_proof(
    payroll: Payroll, database: Database, chain: LocalChain
) -> None:
    command_id = await payroll.order("12.5")
    assert await payroll.validate() == 1
    async with payroll.open_desk() as desk:
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.amount_minor) == ("settled", 12_500_000)
    assert payroll.count_paid(settled) == 12_500_000
    assert await payroll.list_steps(command_id) == ["received", "validated", "executed", "settled"]
    assert settled.tx_hash is not None
    receipt = chain.call("eth_getTransactionReceipt", settled.tx_hash)
    assert receipt["from"] == payroll.operators[0].address.lower()
    async with database.read() as tx:
        told = await tx.dicts(
            "SELECT kind, amount, details->>'tx_hash' AS tx_hash FROM core.journal "
            "WHERE book = 'settlement' ORDER BY entry_id"
        )
    assert [one["kind"] for one in told] == ["received", "validated", "executed", "confirmed"]
    assert (told[-1]["amount"], told[-1]["tx_hash"]) == (12_500_000, settled.tx_hash)


async def test_two_workers_with_two_keys_pay_many_commands_once_each(
    database: Database, chain: LocalChain, token: str
) -> None:
    assert token
    payroll = make_payroll(database, chain, accounts=2)
    ids = [await payroll.order() for _ in range(40)]
    await asyncio.gather(payroll.validate(), payroll.validate())
    async with payroll.open_desk() as one, payroll.open_desk() as other:
        halves = await asyncio.gather(payroll.settle(one, *ids), payroll.settle(other, *ids))
    assert {command.status for half in halves for command in half} == {"settled"}
    assert len(payroll.list_transfers()) == len(set(payroll.list_transfers())) == len(ids)
    assert len({command.tx_hash for command in halves[0]}) == len(ids)


async def test_the_coin_of_the_network_is_paid_too(payroll: Payroll, chain: LocalChain) -> None:
    command_id = await payroll.order("0.000000000000000007", asset_symbol="ETH")
    await payroll.validate()
    async with payroll.open_desk() as desk:
        [settled] = await payroll.settle(desk, command_id)
    assert (settled.status, settled.asset, settled.amount_minor) == ("settled", None, 7)
    assert int(chain.call("eth_getBalance", settled.payee, "latest"), 16) == 7


async def test_a_command_is_settled_when_its_block_is_deep_enough(
    payroll: Payroll, chain: LocalChain
) -> None:
    command_id = await payroll.order()
    await payroll.validate()
    async with payroll.open_desk(confirmations=4) as desk:
        [executed] = await payroll.settle(desk, command_id, until=["executed"])
        assert payroll.count_paid(executed) == 1_000_000
        assert executed.tx_hash is not None
        chain.call("anvil_mine", "0x2")
        for _ in range(3):
            await desk.mend()
            assert await desk.judge() == 0
        chain.call("anvil_mine", "0x1")
        [settled] = await payroll.settle(desk, command_id)
    assert settled.tx_hash == executed.tx_hash


async def test_a_reverted_transfer_fails_and_a_retry_is_another_transaction(payroll: Payroll) -> None:
    command_id = await order_odd(payroll, FICKLE)
    async with payroll.open_desk() as desk:
        [failed] = await payroll.settle(desk, command_id)
        assert failed.status == "failed"
        assert "reverted" in str(failed.error)
        async with payroll.database.write() as tx:
            await limits.retry(tx, command_id, now=clock.now())
        [again] = await payroll.settle(desk, command_id)
    assert (again.status, again.round) == ("failed", 1)
    assert again.tx_hash != failed.tx_hash


async def test_a_success_that_shows_no_transfer_is_a_failure_that_says_so(payroll: Payroll) -> None:
    command_id = await order_odd(payroll, SILENT)
    async with payroll.open_desk() as desk:
        [failed] = await payroll.settle(desk, command_id)
    assert failed.status == "failed"
    assert "shows no transfer of 1 minor units" in str(failed.error)
    assert failed.tx_hash is not None


async def test_what_would_revert_is_not_sent_and_refused_after_some_tries(
    payroll: Payroll, chain: LocalChain
) -> None:
    command_id = await order_odd(payroll, DEAF)
    async with payroll.open_desk() as desk:
        [refused] = await payroll.settle(desk, command_id)
    assert (refused.status, refused.attempts) == ("refused", execution.REVERTS_MAX)
    assert "revert" in str(refused.error)
    assert int(chain.call("eth_getTransactionCount", payroll.operators[0].address, "latest"), 16) == 0


async def test_who_waited_for_money_is_not_refused_at_the_first_revert(
    payroll: Payroll, chain: LocalChain
) -> None:
    operator = payroll.operators[0].address
    chain.set_gas_money(operator, 0)
    command_id = await order_odd(payroll, DEAF)
    async with payroll.open_desk() as desk:
        for _ in range(execution.REVERTS_MAX):
            await payroll.make_due()
            await desk.send()
        chain.set_gas_money(operator, GAS_MONEY_WEI)
        for _ in range(execution.REVERTS_MAX):
            await payroll.make_due()
            await desk.send()
        reverting = await payroll.get(command_id)
        assert (reverting.status, "revert" in str(reverting.error)) == ("validated", True)
        [refused] = await payroll.settle(desk, command_id)
    assert refused.status == "refused"


async def test_nobody_pays_a_token_to_itself(payroll: Payroll) -> None:
    command_id = await payroll.order(payee=TOKEN_ADDRESS)
    await payroll.validate()
    refused = await payroll.get(command_id)
    assert (refused.status, "is lost" in str(refused.error)) == ("refused", True)


@pytest.mark.parametrize("missing", ["gas", "tokens"])
async def test_what_cannot_be_paid_now_waits_can_be_cancelled_and_heals_when_funded(
    payroll: Payroll, chain: LocalChain, missing: str
) -> None:
    operator = payroll.operators[0].address
    if missing == "gas":
        chain.set_gas_money(operator, 0)
    amount = "1" if missing == "gas" else "1500"
    ids = [await payroll.order(amount) for _ in range(2)]
    await payroll.validate()
    async with payroll.open_desk() as desk:
        await desk.send()
        waiting = [await payroll.get(one) for one in ids]
        assert {(one.status, one.attempts) for one in waiting} == {("validated", 1)}
        assert operator.lower() in str(waiting[0].error)
        async with payroll.database.write() as tx:
            await endings.cancel(tx, ids[1], None, now=clock.now())
        if missing == "gas":
            chain.set_gas_money(operator, GAS_MONEY_WEI)
        else:
            chain.mint(operator, 1_000_000_000)
        [settled] = await payroll.settle(desk, ids[0])
    assert (settled.status, settled.error) == ("settled", None)
    assert len(payroll.list_transfers()) == 1


async def test_no_more_is_begun_than_the_account_has(payroll: Payroll) -> None:
    """Or else transactions would revert, and cost gas for nothing."""
    ids = [await payroll.order("300") for _ in range(5)]
    await payroll.validate()
    async with payroll.open_desk() as desk:
        await payroll.settle(desk, *ids, until=["settled", "validated"])
        await desk.send()
    found = [(await payroll.get(one)).status for one in ids]
    assert sorted(found) == ["settled"] * 3 + ["validated"] * 2


async def test_cancelling_and_beginning_exclude_each_other(payroll: Payroll) -> None:
    ids = [await payroll.order() for _ in range(12)]
    await payroll.validate()

    async def cancel(command_id: str) -> bool:
        try:
            async with payroll.database.write() as tx:
                await endings.cancel(tx, command_id, "changed our minds", now=clock.now())
        except CommandNotInState:
            return False
        return True

    async with payroll.open_desk() as desk:
        _, *cancelled = await asyncio.gather(desk.send(), *map(cancel, ids))
        found = await payroll.settle(desk, *ids)
    assert [one.status == "cancelled" for one in found] == cancelled
    assert len(payroll.list_transfers()) == cancelled.count(False)


async def test_what_is_over_expires_and_is_not_sent(
    payroll: Payroll, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await payroll.order(expires_at=later(3600)) for _ in range(2)]
    await payroll.validate()
    late = clock.now() + timedelta(hours=2)
    assert await validation.expire_due(payroll.database, late) == 2
    assert [(await payroll.get(one)).status for one in ids] == ["expired"] * 2
    soon = await payroll.order(expires_at=later(3600))
    await payroll.validate()
    async with payroll.open_desk() as desk:
        monkeypatch.setattr(clock, "now", lambda: late)
        assert await desk.send() == 0
    assert (await payroll.get(soon)).status == "validated"
    assert payroll.list_transfers() == []


LIMITS = {NETWORK: {"USDC": Limits(command="50", payee_day="60", day="100")}}  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("amounts", "same_payee", "validated"),
    [
        (["50.000001", "50"], False, 1),
        (["30"] * 10, True, 2),
        (["30"] * 10, False, 3),
    ],
    ids=["of a command", "of a payee in a day", "of a day"],
)
async def test_limits_hold_however_many_validate_at_once(
    payroll: Payroll, amounts: list[str], same_payee: bool, validated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    payee: dict[str, Any] = {"payee": "0x" + "ab" * 20} if same_payee else {}
    ids = [await payroll.order(amount, **payee) for amount in amounts]
    monkeypatch.setattr(validation, "VALIDATED_AT_ONCE_MAX", 2)
    await asyncio.gather(*(payroll.validate(settlement_limits=LIMITS) for _ in amounts))
    found = [await payroll.get(one) for one in ids]
    assert [one.status for one in found].count("validated") == validated
    refusals = [str(one.error) for one in found if one.status == "refused"]
    assert len(refusals) == len(ids) - validated
    assert all("limit" in refusal for refusal in refusals)


async def test_what_ends_without_paying_is_given_back_and_a_retry_takes_it_again(payroll: Payroll) -> None:
    async def order(amount: str) -> tuple[str, str]:
        command_id = await payroll.order(amount)
        await payroll.validate(settlement_limits=LIMITS)
        return command_id, (await payroll.get(command_id)).status

    first, _ = await order("50")
    assert (await order("50"))[1] == "validated"
    assert (await order("1"))[1] == "refused"
    now = clock.now()
    async with payroll.database.write() as tx:
        assert await commands.begin(tx, first, next_attempt_at=now, now=now)
        assert await commands.fail(tx, first, "it was reverted", now=now)
    third, status = await order("30")
    assert status == "validated"
    with pytest.raises(Refusal, match="limit"):
        async with payroll.database.write() as tx:
            await limits.retry(tx, first, now=now)
    async with payroll.database.write() as tx:
        await endings.cancel(tx, third, None, now=now)
    async with payroll.database.write() as tx:
        assert (await limits.retry(tx, first, now=now)).status == "validated"
    assert (await order("1"))[1] == "refused"


async def test_what_was_validated_before_there_was_a_limit_gives_nothing_of_it_back(payroll: Payroll) -> None:
    before = [await payroll.order("50") for _ in range(2)]
    await payroll.validate()
    ids = [await payroll.order("50") for _ in range(2)]
    await payroll.validate(settlement_limits=LIMITS)
    async with payroll.database.write() as tx:
        for command_id in before:
            await endings.cancel(tx, command_id, None, now=clock.now())
    ids.append(await payroll.order("50"))
    await payroll.validate(settlement_limits=LIMITS)
    assert [(await payroll.get(one)).status for one in ids] == ["validated", "validated", "refused"]


class Explained(WriteTx):
    """Tells how statements would be carried out, and does nothing."""

    plan = ""

    async def all(self, sql: LiteralString, params: Params | None = None, *, into: type[Row]) -> list[Row]:
        assert into
        return await self.dicts(sql, params)  # pyright: ignore[reportReturnType]

    async def dicts(self, sql: LiteralString, params: Params | None = None) -> list[dict[str, Any]]:
        rows = await super().dicts("EXPLAIN " + sql, params)
        self.plan = "\n".join(row["QUERY PLAN"] for row in rows)
        return []


@pytest.mark.parametrize("by", ["payee", "account_ref", "asset_symbol"])
async def test_what_few_commands_have_is_listed_without_reading_all_of_them(
    database: Database, by: str
) -> None:
    async with database.write() as written:
        await written.execute(
            "INSERT INTO settlement.settlement_commands "
            "(command_id, workflow_id, account_ref, payee, asset_symbol) "
            "SELECT 'c' || n, '', 'a' || n % 9, 'p' || n % 9, 's' || n % 9 FROM generate_series(1, 3000) AS n"
        )
        await written.execute("ANALYZE settlement.settlement_commands")
        tx = Explained(written.connection)
        await commands.page(tx, limit=21, **{by: "nobody"})  # pyright: ignore[reportArgumentType]
    assert f"settlement_commands_{by}" in tx.plan, tx.plan


async def test_what_is_due_is_found_by_an_index_however_much_has_ended_or_waits(database: Database) -> None:
    now, senders = clock.now(), ["0x" + "0b" * 20]
    async with database.write() as written:
        await written.execute(
            "SELECT set_config(name, 'off', true) FROM unnest(ARRAY['enable_seqscan', 'enable_sort']) AS name"
        )
        tx = Explained(written.connection)
        for search, is_ordered in (
            (due.find_received(tx, now, 10), True),
            (due.find(tx, "validated", NETWORK, now, 10), True),
            (due.find_confirmed(tx, NETWORK, 10), False),
            (due.find_bound(tx, NETWORK, senders), False),
        ):
            await search
            assert "settlement_commands_due" in tx.plan, tx.plan
            assert not (is_ordered and "Sort" in tx.plan), tx.plan
