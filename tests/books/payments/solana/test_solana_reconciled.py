"""The reconciler on Solana: planted faults are found by their names, and what is safe is mended."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from x402.mechanisms.svm.constants import TOKEN_2022_PROGRAM_ADDRESS
from x402.mechanisms.svm.utils import derive_ata

from fixtures.reconciling import Bought
from fixtures.solana import MINT, PURSE
from fixtures.solana_desk import AMOUNT, FINAL_BLOCKS, approve, transfer_tokens
from fixtures.solana_shop import SolanaShop, make_signature
from tollbook.books.payments import payments
from tollbook.books.payments.ledger import Verdict
from tollbook.core import clock

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

SINCE = datetime(2024, 1, 1, tzinfo=UTC)
Found = dict[tuple[str, str], int]
Plant = Callable[[SolanaShop], Awaitable[Found]]
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


# --- a settlement that was cut off on its way


@plant
async def killed_before_it_was_signed(shop: SolanaShop) -> Found:
    await shop.ask(await shop.reserve(shop.sign()))
    return {("unknown", "open"): 1}


@plant
async def signed_and_dropped_by_every_leader(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.sign_here(bought.signed)
    await shop.ask(bought)
    return {("unknown", "open"): 1}


@plant
async def never_landed_because_its_block_hash_expired(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.sign_here(bought.signed)
    await shop.ask(bought)
    shop.pass_time()
    return {("unknown", "mended"): 1}


@plant
async def another_facilitators_message_never_landed(shop: SolanaShop) -> Found:
    """Nobody here knows until when it could: that is known when a block of enough blocks later is final."""
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    await shop.run("UPDATE payments.x402_settlements SET asked_at = now() - interval '30 minutes'")
    shop.pass_time()
    return {("unknown", "mended"): 1}


@plant
async def killed_after_our_own_broadcast(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.sign_here(bought.signed)
    await shop.ask(bought)
    shop.send(bought.signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def killed_after_another_facilitators_broadcast(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    shop.send(bought.signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_answer_was_lost_and_the_signature_is_known(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought, status="unknown", tx_hash=shop.send(bought.signed))
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_answer_was_lost_and_the_signature_is_wrong(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought, status="unknown", tx_hash=make_signature())
    shop.send(bought.signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def the_answer_named_something_that_is_no_signature(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought, status="unknown", tx_hash="0x" + "ab" * 32)
    shop.send(bought.signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def settled_behind_the_ledgers_back(shop: SolanaShop) -> Found:
    shop.send((await shop.reserve(shop.sign())).signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def killed_between_ledger_and_payment(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    row = await shop.ask(bought)
    await shop.conclude(row, Verdict("settled", shop.send(bought.signed), amount_moved=AMOUNT))
    return {("paid_not_granted", "mended"): 1}


@plant
async def landed_with_an_error_and_not_heard_of(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.sign_here(bought.signed)
    await shop.ask(bought)
    shop.desk.chain.behaviour.before_landing.append(shop.desk.drain)
    shop.send(bought.signed)
    return {("unknown", "mended"): 1}


@plant
async def another_facilitators_message_landed_with_an_error(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.ask(bought)
    shop.desk.chain.behaviour.before_landing.append(shop.desk.drain)
    shop.send(bought.signed)
    return {("unknown", "mended"): 1}


# --- granted, and not paid


async def grant_what_landed_with_an_error(shop: SolanaShop) -> Bought:
    """Row n: as a facilitator of the bare SDK answers."""
    signed = shop.sign()
    shop.desk.chain.behaviour.before_landing.append(shop.desk.drain)
    return await shop.buy(signed, shop.send(signed))


@plant
async def granted_although_it_landed_with_an_error(shop: SolanaShop) -> Found:
    await grant_what_landed_with_an_error(shop)
    return {("granted_not_paid", "mended"): 1}


@plant
async def served_although_it_landed_with_an_error(shop: SolanaShop) -> Found:
    await grant_what_landed_with_an_error(shop)
    await shop.run("UPDATE payments.x402_payments SET requests_used = 3")
    return {("granted_not_paid", "open"): 1}


@plant
async def granted_for_a_signature_that_is_not_there(shop: SolanaShop) -> Found:
    await shop.buy(shop.sign(), make_signature())
    return {("orphaned", "open"): 1}


@plant
async def granted_and_never_landed_until_its_block_hash_expired(shop: SolanaShop) -> Found:
    signed = shop.sign()
    await shop.sign_here(signed)
    await shop.buy(signed, signed.signature)
    shop.pass_time()
    return {("granted_not_paid", "mended"): 1}


@plant
async def granted_for_another_payments_transaction(shop: SolanaShop) -> Found:
    first = await shop.buy()
    await shop.buy(shop.sign(), first.tx_hash)
    return {("orphaned", "open"): 1}


@plant
async def granted_without_a_settlement_and_unpaid(shop: SolanaShop) -> Found:
    await shop.settle(await shop.reserve(shop.sign()), make_signature())
    return {("granted_not_paid", "open"): 1}


@plant
async def a_claim_of_a_transaction_that_is_not_there(shop: SolanaShop) -> Found:
    await shop.claim(make_signature())
    return {("granted_not_paid", "open"): 1}


# --- what was called failed


@plant
async def called_failed_and_settled(shop: SolanaShop) -> Found:
    await shop.buy()
    bought = await shop.reserve(shop.sign())
    await shop.conclude(await shop.ask(bought), Verdict("not settled", reason="it said so"))
    async with shop.database.write() as tx:
        await payments.fail(tx, bought.payment_id, "it said so", now=clock.now())
    shop.send(bought.signed)
    return {("settlement_missing", "mended"): 1, ("paid_not_granted", "mended"): 1}


@plant
async def called_failed_while_the_payment_waits(shop: SolanaShop) -> Found:
    bought = await shop.reserve(shop.sign())
    await shop.conclude(await shop.ask(bought), Verdict("not settled", reason="it said so"))
    shop.send(bought.signed)
    return {("paid_not_granted", "mended"): 1}


@plant
async def called_failed_although_granted(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run(
        """
        UPDATE payments.x402_settlements
        SET status = 'failed', reason = 'it said so', settled_at = NULL, answer = NULL
        """
    )
    return {("settlement_missing", "mended"): 1}


# --- rows deleted and changed


async def forget(shop: SolanaShop, bought: Bought) -> None:
    await shop.run("DELETE FROM payments.x402_tokens WHERE payment_id = %(id)s", id=bought.payment_id)
    await shop.run("DELETE FROM payments.x402_payments WHERE payment_id = %(id)s", id=bought.payment_id)


@plant
async def the_settlements_row_is_gone(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("DELETE FROM payments.x402_settlements")
    return {("settlement_missing", "mended"): 1}


@plant
async def the_payments_row_is_gone(shop: SolanaShop) -> Found:
    await shop.buy()
    await forget(shop, await shop.buy())
    return {("paid_not_granted", "open"): 1}


@plant
async def both_rows_are_gone(shop: SolanaShop) -> Found:
    await shop.buy()
    bought = await shop.buy()
    await forget(shop, bought)
    await shop.run("DELETE FROM payments.x402_settlements WHERE tx_hash = %(hash)s", hash=bought.tx_hash)
    return {("foreign_transfer", "open"): 1}


@plant
async def the_tokens_are_gone(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("DELETE FROM payments.x402_tokens")
    return {("token_missing", "open"): 1}


@plant
async def the_ledger_names_another_transaction(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_settlements SET tx_hash = %(hash)s", hash=make_signature())
    return {("transaction_differs", "mended"): 1}


@plant
async def the_payment_names_another_transaction(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_payments SET tx_hash = %(hash)s", hash=make_signature())
    return {("transaction_differs", "mended"): 1}


# --- another amount


@plant
async def the_ledger_says_that_more_moved(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_settlements SET amount_moved = amount_moved + 1")
    return {("amount_differs", "mended"): 1}


@plant
async def the_payment_says_more(shop: SolanaShop) -> Found:
    await shop.buy()
    await shop.run("UPDATE payments.x402_payments SET amount = amount + 1")
    return {("amount_differs", "open"): 1}


@plant
async def the_claim_says_more(shop: SolanaShop) -> Found:
    await shop.claim(shop.desk.send(shop.desk.transfer(AMOUNT)), AMOUNT + 1)
    return {("amount_differs", "open"): 1}


@plant
async def the_token_kept_a_part_of_the_transfer(shop: SolanaShop) -> Found:
    mint, desk = str(Pubkey.new_unique()), shop.desk
    desk.chain.make_mint_with_fee(mint, basis_points=100)
    for owner, amount in ((desk.payer, PURSE), (desk.seller, 0)):
        desk.chain.give(owner.pubkey(), mint, amount, TOKEN_2022_PROGRAM_ADDRESS)
    bought = await shop.reserve(shop.sign(asset=mint))
    await shop.ask(bought)
    shop.send(bought.signed)
    return {("amount_differs", "open"): 1}


# --- counted twice, and money that nobody knows


@plant
async def an_x402_payment_claimed_as_a_transfer(shop: SolanaShop) -> Found:
    bought = await shop.buy()
    claimed = await shop.claim(make_signature())
    await shop.run(  # which no road leads to
        "UPDATE payments.x402_payments SET tx_hash = %(hash)s WHERE payment_id = %(id)s",
        hash=bought.tx_hash, id=claimed.payment_id,
    )  # fmt: skip
    return {("double", "open"): 1, ("granted_not_paid", "open"): 1}


@plant
async def a_transfer_out_of_nowhere(shop: SolanaShop) -> Found:
    await shop.buy()
    shop.desk.send(shop.desk.transfer(7))
    return {("foreign_transfer", "open"): 1}


@plant
async def two_payers_out_of_nowhere_in_one_transaction(shop: SolanaShop) -> Found:
    other, desk = Keypair(), shop.desk
    desk.chain.give(other.pubkey(), MINT, PURSE)
    await shop.buy()
    desk.send(desk.transfer(7), desk.transfer(5, source=other), signers=(desk.payer, other))
    return {("foreign_transfer", "open"): 1}


@plant
async def an_x402_message_out_of_nowhere(shop: SolanaShop) -> Found:
    await shop.buy()
    shop.send(shop.sign())
    return {("foreign_transfer", "open"): 1}


def test_there_are_many_planted_faults() -> None:
    assert len(PLANTS) >= 30


@pytest.mark.parametrize("name", PLANTS)
async def test_a_fault_planted_on_solana_is_found_by_its_name(solana_shop: SolanaShop, name: str) -> None:
    shop = solana_shop
    expected = await PLANTS[name](shop)
    shop.desk.chain.behave()
    shop.desk.chain.advance(FINAL_BLOCKS)
    report = await shop.reconcile()
    assert not report.unreachable
    found = Counter((seen.kind, seen.status) for seen in report.differences)
    assert found == expected, [(seen.kind, seen.note) for seen in report.differences]
    opened = sum(count for (_, status), count in expected.items() if status == "open")
    assert report.open_count == opened
    # Seen again it is the same row; what was mended is not there any more.
    again = await shop.reconcile(SINCE)
    assert {seen.status for seen in again.differences} <= {"open"}
    assert again.open_count == opened, [(seen.kind, seen.subject, seen.note) for seen in again.differences]
    assert len(await shop.differences()) == sum(expected.values())
    await check_money(shop, expected)


async def check_money(shop: SolanaShop, expected: Found) -> None:
    """Who paid has a payment that buys; nobody has one for nothing, but where it was said so."""
    async with shop.database.read() as tx:
        kept = [each for each in await payments.page(tx) if each.settlement == "settled"]
    earned, owed = shop.desk.earned(), sum(each.amount for each in kept if each.asset == MINT)
    if all(status == "mended" for _, status in expected):
        assert earned == owed


async def test_solana_books_without_faults_have_no_differences(solana_shop: SolanaShop) -> None:
    shop, desk, delegate = solana_shop, solana_shop.desk, Keypair()
    for _ in range(2):
        bought = await shop.buy()
    await shop.claim(desk.send(desk.transfer(AMOUNT)))
    source, to = (derive_ata(str(each.pubkey()), MINT) for each in (desk.payer, desk.seller))
    desk.send(approve(source, desk.payer.pubkey(), delegate.pubkey(), AMOUNT))
    paid = desk.send(transfer_tokens(source, to, delegate.pubkey(), AMOUNT), signers=(delegate,))
    await shop.claim(paid, from_address=str(delegate.pubkey()))
    desk.chain.advance(FINAL_BLOCKS)
    for since in (None, SINCE):
        report = await shop.reconcile(since)
        assert report.differences == [], [(seen.kind, seen.note) for seen in report.differences]
    assert report.looked_at > 0
    assert (await shop.settlement(bought)).confirmed_at is not None


async def test_a_foreign_transfer_on_solana_that_is_claimed_is_no_difference_any_more(
    solana_shop: SolanaShop,
) -> None:
    shop = solana_shop
    await shop.buy()
    tx_hash = shop.desk.send(shop.desk.transfer(AMOUNT))
    shop.desk.chain.advance(FINAL_BLOCKS)
    assert (await shop.reconcile(SINCE)).open_count == 1
    await shop.claim(tx_hash)
    assert (await shop.reconcile(SINCE)).open_count == 0


async def test_a_fork_orphans_a_payment_which_keeps_what_it_bought_until_it_can_land_no_more(
    solana_shop: SolanaShop,
) -> None:
    """Both ways out: it lands again, or its time is over."""
    shop, chain = solana_shop, solana_shop.desk.chain
    chain.behaviour.held = True
    for lands_again in (True, False):
        signed = shop.sign()
        await shop.sign_here(signed)
        bought = await shop.buy(signed)
        chain.fork(signed.signature)
        report = await shop.reconcile(SINCE)
        assert [(seen.kind, seen.status) for seen in report.differences] == [("orphaned", "open")]
        assert (await shop.payment(bought)).status == "verified"
        if lands_again:
            shop.send(signed)
            chain.confirm()
        else:
            shop.pass_time()
        report = await shop.reconcile(SINCE)
        assert report.open_count == 0, [(seen.kind, seen.note) for seen in report.differences]
        ends = (await shop.payment(bought)).settlement, (await shop.settlement(bought)).status
        assert ends == (("settled", "settled") if lands_again else ("reversed", "failed"))


async def test_nothing_young_is_looked_at_on_solana(solana_shop: SolanaShop) -> None:
    shop = solana_shop
    await shop.settle(await shop.reserve(shop.sign()), make_signature())
    shop.desk.send(shop.desk.transfer(7))
    shop.desk.chain.advance(FINAL_BLOCKS)
    report = await replace(shop.reconciler(), grace=timedelta(minutes=2)).run()
    assert report.differences == []
