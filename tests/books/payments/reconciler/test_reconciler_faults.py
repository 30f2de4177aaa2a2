"""The reconciler: every planted fault is found by its name."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from fixtures.authorizations import transfer
from fixtures.reconciling import AMOUNT, OVER, PURSE, SINCE, Bought, Shop, make_hash
from tollbook.books.payments import payments, refunds
from tollbook.books.payments.ledger import Verdict
from tollbook.core import clock
from tollbook.core.local_chain import DEPLOYER, LocalChainFailed

Found = dict[tuple[str, str], int]
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
