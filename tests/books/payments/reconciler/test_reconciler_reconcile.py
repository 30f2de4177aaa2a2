"""The reconciler: every planted fault is found by its name, none is invented, and what is safe is mended."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.authorizations import transfer
from fixtures.reconciling import AMOUNT, OVER, Bought, Shop, make_hash
from tollbook.books.payments import answers, payments, refunds
from tollbook.books.payments.answers import Asked
from tollbook.books.payments.ledger import Verdict
from tollbook.books.payments.reconciler import differences
from tollbook.books.payments.reconciler import transfers as reconciler_movements
from tollbook.core import clock, journal
from tollbook.core.chains import Chain
from tollbook.core.database import Database, WriteTx
from tollbook.core.journal import Fact
from tollbook.core.local_chain import DEPLOYER, NETWORK, LocalChain, LocalChainFailed

PURSE = 1_000_000_000
SINCE = datetime(2024, 1, 1, tzinfo=UTC)
Found = dict[tuple[str, str], int]


@pytest.fixture
async def shop(database: Database, chain: LocalChain, token: str, payer: LocalAccount) -> AsyncIterator[Shop]:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        yield Shop(database, chain, node, payer, chain.make_account(), chain.make_account(amount=PURSE))


@pytest.fixture
def own_chain() -> Iterator[LocalChain]:
    """A chain whose past may be changed."""
    with LocalChain.start() as running:
        running.ensure_token()
        yield running


@pytest.fixture
async def own_shop(database: Database, own_chain: LocalChain) -> AsyncIterator[Shop]:
    async with Chain(NETWORK, own_chain.url) as node:
        payer, bank = own_chain.make_account(amount=PURSE), own_chain.make_account(amount=PURSE)
        yield Shop(database, own_chain, node, payer, own_chain.make_account(), bank)


Plant = Callable[[Shop], Awaitable[Found]]
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


# --- a settlement that was cut off at each point on its way


@plant
async def killed_before_the_broadcast(shop: Shop) -> Found:
    await shop.ask(await shop.reserve(shop.sign()))
    return {("unknown", "open"): 1}


@plant
async def killed_before_the_broadcast_and_run_out(shop: Shop) -> Found:
    await shop.ask(await shop.reserve(shop.sign(lasts=OVER)))
    return {("unknown", "mended"): 1}


@plant
async def killed_after_the_broadcast(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    bought.signed.send(shop.chain)
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_answer_was_lost_and_the_hash_is_known(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    sent = bought.signed.send(shop.chain)
    await shop.ask(bought, status="unknown", tx_hash=sent)
    async with shop.database.write() as tx:
        await payments.suspect(tx, bought.payment_id, "settlement_pending", sent, now=clock.now())
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_answer_was_lost_and_the_hash_is_wrong(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    bought.signed.send(shop.chain)
    await shop.run("UPDATE payments.x402_settlements SET tx_hash = %(hash)s", hash=make_hash())
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_hash_is_another_payments(shop: Shop) -> Found:
    other = await shop.buy()
    await shop.ask(await shop.reserve(shop.sign()))
    await shop.run(
        "UPDATE payments.x402_settlements SET tx_hash = %(hash)s WHERE status = 'pending'", hash=other.tx_hash
    )
    return {("unknown", "open"): 1}


@plant
async def killed_between_ledger_and_payment(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    row = await shop.ask(bought)
    await shop.conclude(row, Verdict("settled", bought.signed.send(shop.chain), amount_moved=AMOUNT))
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_ledger_knows_and_the_payment_is_unknown(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    row = await shop.ask(bought)
    await shop.conclude(row, Verdict("settled", bought.signed.send(shop.chain), amount_moved=AMOUNT))
    async with shop.database.write() as tx:
        await payments.suspect(tx, bought.payment_id, "settlement_not_booked", None, now=clock.now())
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_settlement_failed_and_the_payment_waits(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign(lasts=OVER))
    await shop.conclude(await shop.ask(bought), Verdict("not settled", reason="no money"))
    return {("unknown", "mended"): 1}


@plant
async def reserved_and_never_asked(shop: Shop) -> Found:
    await shop.reserve(shop.sign(lasts=OVER))
    return {("unknown", "mended"): 1}


@plant
async def settled_behind_the_ledgers_back(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    bought.signed.send(shop.chain)
    return {("paid_not_granted", "mended"): 1}


@plant
async def reserved_and_cancelled(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    bought.signed.cancel(shop.chain)
    return {("unknown", "mended"): 1}


@plant
async def asked_and_cancelled(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    bought.signed.cancel(shop.chain)
    return {("unknown", "mended"): 1}


@plant
async def asked_and_paid_to_somebody_else(shop: Shop) -> Found:
    signed = replace(shop.sign(), pay_to=DEPLOYER)
    bought = await shop.reserve(signed)
    await shop.ask(bought)
    signed.send(shop.chain)
    return {("unknown", "mended"): 1}


@plant
async def asked_and_paid_short(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign(AMOUNT - 1))
    await shop.ask(bought)
    bought.signed.send(shop.chain)
    return {("amount_differs", "open"): 1}


@plant
async def a_network_that_nobody_watches(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign(), network="eip155:1")
    await shop.ask(bought, network="eip155:1")
    return {("unknown", "open"): 1}


@plant
async def a_scheme_that_no_log_proves(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign(), scheme="batch-settlement")
    await shop.ask(bought, scheme="batch-settlement")
    return {("unknown", "open"): 1}


# --- what was called failed


@plant
async def called_failed_and_settled(shop: Shop) -> Found:
    bought = await shop.fail()
    await shop.buy()
    await shop.run(
        "UPDATE payments.x402_settlements SET nonce = %(nonce)s WHERE settlement_id = %(id)s",
        nonce=(signed := shop.sign()).nonce, id=bought.settlement_id,
    )  # fmt: skip
    await shop.run(
        "UPDATE payments.x402_payments SET nonce = %(nonce)s WHERE payment_id = %(id)s",
        nonce=signed.nonce, id=bought.payment_id,
    )  # fmt: skip
    signed.send(shop.chain)
    return {("settlement_missing", "mended"): 1, ("paid_not_granted", "mended"): 1}


@plant
async def called_failed_while_the_payment_waits(shop: Shop) -> Found:
    bought = await shop.reserve(shop.sign())
    row = await shop.ask(bought)
    await shop.conclude(row, Verdict("not settled", reason="it said so"))
    bought.signed.send(shop.chain)
    return {("paid_not_granted", "mended"): 1}


@plant
async def called_failed_although_granted(shop: Shop) -> Found:
    await shop.buy()
    await shop.run(
        """
        UPDATE payments.x402_settlements
        SET status = 'failed', reason = 'it said so', settled_at = NULL, answer = NULL
        """
    )
    return {("settlement_missing", "mended"): 1}


# --- granted, and not paid


@plant
async def the_facilitator_lied_and_nothing_was_sent(shop: Shop) -> Found:
    await shop.buy(shop.sign(lasts=OVER), make_hash())
    return {("granted_not_paid", "mended"): 1}


@plant
async def the_facilitator_lied_and_requests_were_served(shop: Shop) -> Found:
    await shop.buy(shop.sign(lasts=OVER), make_hash())
    await shop.run("UPDATE payments.x402_payments SET requests_used = 3")
    return {("granted_not_paid", "open"): 1}


@plant
async def granted_and_cancelled(shop: Shop) -> Found:
    signed = shop.sign()
    await shop.buy(signed, signed.cancel(shop.chain))
    return {("granted_not_paid", "mended"): 1}


@plant
async def granted_for_a_hash_that_is_not_there(shop: Shop) -> Found:
    await shop.buy(shop.sign(), make_hash())
    return {("orphaned", "open"): 1}


@plant
async def granted_for_a_transaction_that_reverted(shop: Shop) -> Found:
    signed = shop.sign(PURSE * 2)
    with suppress(LocalChainFailed):
        signed.send(shop.chain)
    newest = shop.chain.call("eth_getBlockByNumber", "latest", False)
    await shop.buy(signed, newest["transactions"][0] if newest["transactions"] else make_hash())
    return {("orphaned", "open"): 1}


@plant
async def granted_for_another_payments_transaction(shop: Shop) -> Found:
    first = await shop.buy()
    await shop.buy(shop.sign(), first.tx_hash)
    return {("orphaned", "open"): 1}


@plant
async def granted_without_a_settlement_and_unpaid(shop: Shop) -> Found:
    await shop.settle(await shop.reserve(shop.sign()), make_hash())
    return {("granted_not_paid", "open"): 1}


@plant
async def granted_without_a_settlement_and_run_out(shop: Shop) -> Found:
    await shop.settle(await shop.reserve(shop.sign(lasts=OVER)), make_hash())
    return {("granted_not_paid", "mended"): 1}


@plant
async def the_ledger_says_failed_and_the_goods_are_out(shop: Shop) -> Found:
    bought = await shop.fail()
    await shop.run(
        """
        UPDATE payments.x402_payments SET status = 'verified', settlement = 'settled', verified_at = now(),
            settled_at = now(), expires_at = now() + lifetime, settled_in = 1
        WHERE payment_id = %(id)s
        """,
        id=bought.payment_id,
    )
    return {("granted_not_paid", "mended"): 1}


@plant
async def a_claim_of_a_transaction_that_is_not_there(shop: Shop) -> Found:
    await shop.claim(make_hash())
    return {("granted_not_paid", "open"): 1}


@plant
async def a_claim_of_money_for_somebody_else(shop: Shop) -> Found:
    await shop.claim(transfer(shop.chain, shop.payer, DEPLOYER, AMOUNT))
    return {("granted_not_paid", "open"): 1}


# --- rows deleted and changed


@plant
async def the_settlements_row_is_gone(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("DELETE FROM payments.x402_settlements")
    return {("settlement_missing", "mended"): 1}


async def _forget(shop: Shop, bought: Bought) -> None:
    await shop.run("DELETE FROM payments.x402_tokens WHERE payment_id = %(id)s", id=bought.payment_id)
    await shop.run("DELETE FROM payments.x402_payments WHERE payment_id = %(id)s", id=bought.payment_id)


@plant
async def the_payments_row_is_gone(shop: Shop) -> Found:
    await shop.buy()
    await _forget(shop, await shop.buy())
    return {("paid_not_granted", "open"): 1}


@plant
async def both_rows_are_gone(shop: Shop) -> Found:
    await shop.buy()
    bought = await shop.buy()
    await _forget(shop, bought)
    await shop.run("DELETE FROM payments.x402_settlements WHERE tx_hash = %(hash)s", hash=bought.tx_hash)
    return {("foreign_transfer", "open"): 1}


@plant
async def a_claims_row_is_gone(shop: Shop) -> Found:
    await shop.buy()
    await _forget(shop, await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT)))
    return {("foreign_transfer", "open"): 1}


@plant
async def the_tokens_are_gone(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("DELETE FROM payments.x402_tokens")
    return {("token_missing", "open"): 1}


@plant
async def the_ledger_names_another_transaction(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_settlements SET tx_hash = %(hash)s", hash=make_hash())
    return {("transaction_differs", "mended"): 1}


@plant
async def the_payment_names_another_transaction(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_payments SET tx_hash = %(hash)s", hash=make_hash())
    return {("transaction_differs", "mended"): 1}


@plant
async def the_ledger_says_that_more_moved(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_settlements SET amount_moved = amount_moved + 1")
    return {("amount_differs", "mended"): 1}


@plant
async def the_ledger_says_that_more_was_signed(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_settlements SET amount = amount + 1")
    return {("amount_differs", "open"): 1}


@plant
async def the_payment_says_more(shop: Shop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_payments SET amount = amount + 1")
    return {("amount_differs", "open"): 1}


@plant
async def the_claim_says_more(shop: Shop) -> Found:
    await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT), AMOUNT + 1)
    return {("amount_differs", "open"): 1}


@plant
async def the_claim_says_less(shop: Shop) -> Found:
    await shop.claim(transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT), AMOUNT - 1)
    return {("amount_differs", "open"): 1}


# --- counted twice


@plant
async def an_x402_payment_claimed_as_a_transfer(shop: Shop) -> Found:
    bought = await shop.buy()
    await shop.run("UPDATE payments.x402_payments SET tx_hash = NULL")
    await shop.claim(bought.tx_hash or "")
    await shop.run(
        "UPDATE payments.x402_payments SET tx_hash = %(hash)s WHERE nonce IS NOT NULL", hash=bought.tx_hash
    )
    return {("double", "open"): 1}


@plant
async def one_transfer_claimed_under_two_names(shop: Shop) -> Found:
    tx_hash = transfer(shop.chain, shop.payer, shop.seller.address, AMOUNT)
    await shop.claim(tx_hash)
    other = await shop.reserve(shop.sign(), scheme="transfer")
    await shop.settle(other, make_hash())
    await shop.run(  # which no road leads to any more
        "UPDATE payments.x402_payments SET tx_hash = %(hash)s WHERE payment_id = %(id)s",
        hash=tx_hash, id=other.payment_id,
    )  # fmt: skip
    return {("double", "open"): 1, ("granted_not_paid", "open"): 1}


# --- money that nobody knows


@plant
async def a_transfer_out_of_nowhere(shop: Shop) -> Found:
    await shop.buy()
    transfer(shop.chain, shop.payer, shop.seller.address, 7)
    return {("foreign_transfer", "open"): 1}


@plant
async def an_authorization_out_of_nowhere(shop: Shop) -> Found:
    await shop.buy()
    shop.sign().send(shop.chain)
    return {("foreign_transfer", "open"): 1}


# --- refunds


async def _ask_back(shop: Shop) -> refunds.Refund:
    bought, an_hour_ago = await shop.buy(), clock.now() - timedelta(hours=1)
    async with shop.database.write() as tx:
        return await refunds.request(tx, bought.payment_id, amount=None, reason=None, now=an_hour_ago)


@plant
async def a_refund_that_was_never_sent(shop: Shop) -> Found:
    await _ask_back(shop)
    return {("refund_unknown", "open"): 1}


@plant
async def a_refund_that_was_sent_and_not_heard_of(shop: Shop) -> Found:
    asked = await _ask_back(shop)
    async with shop.database.write() as tx:
        assert await refunds.mark_sent(tx, asked.refund_id, now=clock.now())
    return {("refund_unknown", "open"): 1}


@plant
async def a_refund_that_never_landed(shop: Shop) -> Found:
    await shop.refund(await shop.buy(), tx_hash=make_hash())
    return {("refund_not_landed", "open"): 1}


@plant
async def a_refund_that_sent_less(shop: Shop) -> Found:
    sent = transfer(shop.chain, shop.bank, shop.payer.address, AMOUNT - 1)
    await shop.refund(await shop.buy(), tx_hash=sent)
    return {("refund_not_landed", "open"): 1}


@plant
async def a_refund_that_went_elsewhere(shop: Shop) -> Found:
    sent = transfer(shop.chain, shop.bank, DEPLOYER, AMOUNT)
    await shop.refund(await shop.buy(), AMOUNT, tx_hash=sent)
    return {("refund_not_landed", "open"): 1}


@plant
async def a_payment_called_refunded_by_hand(shop: Shop) -> Found:
    await shop.buy()
    await shop.run(
        """
        UPDATE payments.x402_payments SET status = 'expired', settlement = 'refunded', refunded_at = now(),
            refund_asked = amount, refunded_amount = amount
        """
    )
    return {("refund_not_landed", "open"): 1}


def test_there_are_at_least_forty_planted_faults() -> None:
    assert len(PLANTS) >= 40


@pytest.mark.parametrize("name", PLANTS)
async def test_a_planted_fault_is_found_by_its_name(shop: Shop, name: str) -> None:
    expected = await PLANTS[name](shop)
    shop.chain.call("evm_mine")
    report = await shop.reconcile()
    found = Counter((seen.kind, seen.status) for seen in report.differences)
    assert found == expected, [(seen.kind, seen.note) for seen in report.differences]
    assert not report.unreachable
    opened = sum(count for (_, status), count in expected.items() if status == "open")
    assert report.open_count == opened
    # Seen again it is the same row; what was mended is not there any more.
    again = await shop.reconcile(SINCE)
    assert {seen.status for seen in again.differences} <= {"open"}
    assert again.open_count == opened, [(seen.kind, seen.subject, seen.note) for seen in again.differences]
    assert len(await shop.differences()) == sum(expected.values())
    # Who paid has a payment that buys; who did not, has none.
    for bought in shop.bought:
        with suppress(Exception):
            payment = await shop.payment(bought)
            if ("paid_not_granted", "mended") in expected and payment.nonce and payment.status != "failed":
                assert payment.status == "verified"


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
