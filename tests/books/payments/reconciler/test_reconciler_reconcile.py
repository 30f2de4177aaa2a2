"""The reconciler: no difference is invented, what is safe is mended, once, however often it is killed."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.authorizations import transfer
from fixtures.reconciling import AMOUNT, OVER, PURSE, SINCE, Bought, Shop, make_hash
from tollbook.books.payments import answers, payments
from tollbook.books.payments.answers import Asked
from tollbook.books.payments.ledger import Verdict
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler import transfers as reconciler_movements
from tollbook.core import clock, journal
from tollbook.core.chains import Chain
from tollbook.core.database import Database, WriteTx
from tollbook.core.journal import Fact
from tollbook.core.local_chain import NETWORK, LocalChain


async def test_a_clean_book_has_no_differences(shop: Shop) -> None:
    for _ in range(3):
        bought = await shop.buy()
    await shop.refund(bought, 100)
    await shop.fail()
    await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT))
    for since in (None, SINCE):
        report = await shop.reconcile(since)
        assert report.differences == []
    assert report.looked_at > 0
    assert (await shop.settlement(bought)).confirmed_at is not None


VERBS = st.lists(st.sampled_from(["buy", "fail", "claim", "refund", "spend", "reserve"]), max_size=8)


@given(histories=st.lists(VERBS, min_size=1, max_size=2))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_history_without_faults_gives_a_difference(
    database_url: str, chain: LocalChain, histories: list[list[str]]
) -> None:
    async def live() -> None:
        async with Database(database_url) as database, Chain(NETWORK, chain.url) as node:
            payer, bank = chain.make_account(amount=PURSE), chain.make_account(amount=PURSE)
            shop = Shop(database, chain, node, payer, chain.make_account(), bank)
            for verbs in histories:
                for verb in verbs:
                    await do(shop, verb)
                report = await shop.reconcile(SINCE)
                assert report.differences == []

    asyncio.run(live())


async def do(shop: Shop, verb: str) -> None:
    paid = [bought for bought in shop.bought if bought.tx_hash is not None]
    if verb == "buy":
        await shop.buy()
    elif verb == "fail":
        await shop.fail()
    elif verb == "claim":
        await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT))
    elif verb == "reserve":
        await shop.reserve(shop.sign())  # its handler is still at work
    elif verb == "refund" and paid and (await shop.payment(paid[-1])).refunded_amount < AMOUNT:
        await shop.refund(paid[-1], 1)
    elif verb == "spend" and paid:
        await shop.run(
            """
            UPDATE payments.x402_payments SET requests_used = requests_used + 1
            WHERE payment_id = %(id)s AND requests_used + 1 < requests_allocated
            """,
            id=paid[-1].payment_id,
        )


async def test_two_runs_at_once_mend_a_difference_once(shop: Shop) -> None:
    for _ in range(4):
        bought = await shop.reserve(shop.sign())
        await shop.ask(bought)
        bought.signed.send(shop.chain)
    await asyncio.gather(*(shop.reconcile() for _ in range(4)))
    async with shop.database.read() as tx:
        kinds = await tx.dicts("SELECT kind, count(*) AS n FROM core.journal GROUP BY kind ORDER BY kind")
    told = {row["kind"]: row["n"] for row in kinds}
    assert told["payment.settled"] == 4
    assert told["difference.found"] == told["difference.mended"] == 4


async def test_a_foreign_transfer_that_is_claimed_is_no_difference_any_more(shop: Shop) -> None:
    tx_hash = transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT)
    await shop.buy()
    assert (await shop.reconcile(SINCE)).open_count == 1
    await shop.claim(tx_hash)
    assert (await shop.reconcile(SINCE)).open_count == 0
    (seen,) = await shop.differences()
    assert (seen.kind, seen.status) == ("foreign_transfer", "mended")


async def test_what_was_accepted_stays_so(shop: Shop) -> None:
    transfer(shop.chain, shop.payer, shop.seller.address, 5)
    await shop.buy()
    (seen,) = (await shop.reconcile(SINCE)).differences
    async with shop.database.write() as tx:
        await differences.accept(tx, seen.difference_id, "a gift", now=clock.now())
    report = await shop.reconcile(SINCE)
    assert report.open_count == 0
    assert [each.status for each in report.differences] == ["accepted"]
    async with shop.database.write() as tx:
        with pytest.raises(differences.DifferenceNotOpen):
            await differences.accept(tx, seen.difference_id, "again", now=clock.now())


async def test_a_silent_node_is_said_and_nothing_is_decided(shop: Shop) -> None:
    await shop.ask(await shop.reserve(shop.sign()))
    await shop.buy(shop.sign(), make_hash())
    async with Chain(NETWORK, "http://127.0.0.1:9") as shop.node:
        report = await shop.reconcile()
    assert list(report.unreachable) == [NETWORK]
    assert report.differences == []


async def test_a_reorganisation_orphans_a_payment_which_keeps_what_it_bought(own_shop: Shop) -> None:
    shop = own_shop
    before = shop.chain.call("evm_snapshot")
    bought = await shop.buy()
    assert (await shop.reconcile()).differences == []
    assert shop.chain.call("evm_revert", before)
    report = await shop.reconcile(SINCE)
    assert [(seen.kind, seen.status) for seen in report.differences] == [("orphaned", "open")]
    assert (await shop.settlement(bought)).status == "unknown"
    assert (await shop.payment(bought)).status == "verified"
    # Sent again, by whoever holds the authorization, it is settled again: by another transaction.
    shop.chain.call("evm_mine")
    again = bought.signed.send(shop.chain)
    assert (await shop.reconcile(SINCE)).open_count == 0
    settled = await shop.settlement(bought)
    assert (settled.status, settled.tx_hash) == ("settled", again)
    assert (await shop.payment(bought)).tx_hash == again


async def test_an_orphan_that_runs_out_was_never_paid(own_shop: Shop) -> None:
    shop = own_shop
    before = shop.chain.call("evm_snapshot")
    bought = await shop.buy()
    assert shop.chain.call("evm_revert", before)
    await shop.reconcile()
    shop.chain.call("evm_increaseTime", hex(120))
    shop.chain.call("evm_mine")
    report = await shop.reconcile(SINCE)
    assert [(seen.kind, seen.status) for seen in report.differences] == [("granted_not_paid", "mended")]
    assert report.open_count == 0
    payment = await shop.payment(bought)
    assert (payment.status, payment.settlement) == ("expired", "reversed")
    async with shop.database.read() as tx:
        assert await tx.value("SELECT count(*) FROM payments.x402_tokens WHERE revoked_at IS NULL") == 0


async def test_nothing_young_is_looked_at(shop: Shop) -> None:
    bought = await shop.reserve(shop.sign(lasts=OVER))
    held, let_go = await shop.reserve(shop.sign()), await shop.reserve(shop.sign())
    await shop.ask(held)
    held.signed.send(shop.chain)
    await shop.run("UPDATE payments.x402_settlements SET held_until = now() + interval '1 minute'")
    await shop.ask(let_go)
    await shop.settle(bought, make_hash())
    report = await replace(shop.reconciler(), grace=timedelta(minutes=2)).run()
    assert report.differences == []
    assert [(await shop.settlement(each)).status for each in (held, let_go)] == ["pending", "pending"]


async def test_a_run_that_is_cut_off_anywhere_is_finished_by_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the middle of a transaction, as a kill would: what it held is as it was."""
    waiting: list[Bought] = []
    for _ in range(3):
        waiting.append(await shop.reserve(shop.sign()))
        await shop.ask(waiting[-1])
        waiting[-1].signed.send(shop.chain)
    await shop.buy(shop.sign(lasts=OVER), make_hash())
    shop.chain.call("evm_mine")
    tell, told = journal.append, 0

    async def cut(tx: WriteTx, facts: Sequence[Fact]) -> None:
        nonlocal told
        told += 1
        await tell(tx, facts)
        if told % 4 == 0:
            raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(journal, "append", cut)
        for _ in range(6):
            with suppress(asyncio.CancelledError):
                await shop.reconcile()
    assert told > 4
    assert (await shop.reconcile()).open_count == 0
    assert [(await shop.payment(bought)).status for bought in waiting] == ["verified"] * 3
    assert Counter((seen.kind, seen.status, seen.times_seen) for seen in await shop.differences()) == {
        ("paid_not_granted", "mended", 1): 3,
        ("granted_not_paid", "mended", 1): 1,
    }


async def test_a_payer_whose_payment_was_mended_is_served_when_he_comes_again(shop: Shop) -> None:
    """The request that a failed payment came with goes with the payment that stands for it."""
    bought = await shop.reserve(shop.sign())
    asked = Asked(b"the header", b"r" * 32, has_secret=True)
    async with shop.database.write() as tx:
        await answers.begin(
            tx, bought.payment_id, asked, 1, lifetime=timedelta(hours=1), now=clock.now() - timedelta(hours=1)
        )
        await payments.fail(tx, bought.payment_id, "it said so", now=clock.now())
    row = await shop.ask(bought)
    await shop.conclude(row, Verdict("settled", bought.signed.send(shop.chain), amount_moved=AMOUNT))
    (seen,) = (await shop.reconcile(SINCE)).differences
    assert (seen.kind, seen.status) == ("paid_not_granted", "mended")
    assert seen.payment_id not in (None, bought.payment_id)
    async with shop.database.write() as tx:
        made = await payments.get(tx, seen.payment_id or 0)
        record = await answers.get(tx, made.payment_id)
        assert record is not None
        assert (made.status, record.status, record.proof_hash) == ("verified", "open", asked.proof_hash)
        assert await answers.take(tx, made.payment_id, 2, now=clock.now())


async def test_a_long_chain_is_read_in_pieces_and_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler_movements, "POSITIONS_MAX", 2)
    monkeypatch.setattr(reconciler_movements, "PIECES_MAX", 3)
    await shop.buy()
    transfer(shop.chain, shop.payer, shop.seller.address, 7)
    before = -1
    while (position := await read_position(shop)) != before:  # it ends where the chain ends
        before = position
        report = await shop.reconcile()
    assert position == await shop.node.get_block_number()
    assert [(seen.kind, seen.status) for seen in await shop.differences()] == [("foreign_transfer", "open")]
    assert report.open_count == 1


async def read_position(shop: Shop) -> int | None:
    async with shop.database.read() as tx:
        return await tx.value("SELECT position FROM payments.x402_cursors")
