"""Transactions of Solana presented as payments: what the balances say, once, for the one who paid."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from x402.mechanisms.svm.constants import TOKEN_PROGRAM_ADDRESS
from x402.mechanisms.svm.utils import derive_ata

from fixtures.solana import MINT, NETWORK, PURSE
from fixtures.solana_desk import AMOUNT, FINAL_BLOCKS, Desk, approve, transfer_tokens
from tollbook.books.payments import payments
from tollbook.books.payments.claims import (
    Claimed,
    ClaimRefused,
    ClaimRequest,
    PayerUnproven,
    claim,
    claim_message,
)
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.payments import Offer
from tollbook.books.payments.rules import PaidRoute, Payee, Tolls, compile_tolls
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.transactions import AGE_MAX, TransactionTooYoung
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable, MalformedAddress, MalformedHash
from tollbook.core.database import Database
from tollbook.entrypoints.api import create_api

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

ROUTE = "GET /weather"


@dataclass
class Counter:
    """Where claims are made."""

    desk: Desk
    database: Database
    node: SolanaNode
    tolls: Tolls

    def pay(self, *calls: Instruction, signers: tuple[Keypair, ...] = ()) -> str:
        """A transaction (by default: the price, from payer to seller) that is final."""
        signature = self.desk.send(*(calls or [self.desk.transfer(AMOUNT)]), signers=signers)
        self.desk.chain.advance(FINAL_BLOCKS)
        return signature

    async def claim(
        self, tx_hash: str, account: Keypair | None = None, *, vouched: bool = False, **changes: Any
    ) -> Claimed:
        account = account or self.desk.payer
        signed = account.sign_message(claim_message(NETWORK, tx_hash, ROUTE).encode())
        later = changes.pop("later", timedelta(0))
        fields = {"payer": str(account.pubkey()), "signature": str(signed)} | changes
        request = ClaimRequest(network=NETWORK, tx_hash=tx_hash, **fields)
        nodes = {NETWORK: self.node}
        now = clock.now() + later
        return await claim(self.database, nodes, self.tolls, request, vouched=vouched, now=now)

    async def count(self) -> int:
        async with self.database.read() as tx:
            return len([each for each in await payments.page(tx) if each.status != "failed"])


@pytest.fixture
async def counter(desk: Desk, database: Database) -> AsyncIterator[Counter]:
    payees = [Payee("solana-devnet", str(desk.seller.pubkey()))]
    tolls = compile_tolls({ROUTE: PaidRoute("$0.01", requests=10)}, payees)
    async with SolanaNode(NETWORK, desk.chain.url) as node:
        yield Counter(desk, database, node, tolls)


async def test_tokens_sent_beforehand_buy_in_proportion(counter: Counter) -> None:
    claimed = await counter.claim(counter.pay(counter.desk.transfer(3 * AMOUNT + 5)))
    payment = claimed.payment
    assert claimed.requests_remaining == 30
    assert (payment.amount, payment.from_address) == (3 * AMOUNT + 5, str(counter.desk.payer.pubkey()))
    assert (payment.status, payment.settlement, payment.chain) == ("verified", "settled", "solana-devnet")


async def test_a_transaction_counts_once_and_gives_its_payer_a_new_token_each_time(counter: Counter) -> None:
    tx_hash = counter.pay()
    answers = await asyncio.gather(*(counter.claim(tx_hash) for _ in range(8)))
    assert len({answer.payment.payment_id for answer in answers}) == 1
    assert len({answer.access_token for answer in answers}) == 8
    assert await counter.count() == 1


async def test_nobody_but_the_payer_claims_by_his_own_signature_of_this_text(counter: Counter) -> None:
    tx_hash, stranger = counter.pay(), Keypair()
    his = str(counter.desk.payer.pubkey())
    with pytest.raises(ClaimRefused, match="moves no USDC"):
        await counter.claim(tx_hash, stranger)
    elsewhere = counter.desk.payer.sign_message(claim_message(NETWORK, tx_hash, "GET /else").encode())
    for signature in (str(stranger.sign_message(b"x")), str(elsewhere)):
        with pytest.raises(PayerUnproven, match="not"):
            await counter.claim(tx_hash, payer=his, signature=signature)
    for changes in ({"signature": None}, {"payer": None}, {"signature": "0x12"}, {"signature": "é"}):
        with pytest.raises(PayerUnproven) as unproven:
            await counter.claim(tx_hash, **changes)
        assert unproven.value.details["message"] == claim_message(NETWORK, tx_hash, ROUTE)
    with pytest.raises(MalformedAddress):
        await counter.claim(tx_hash, payer="0x" + "1" * 40)
    assert await counter.count() == 0


async def test_an_operator_may_vouch_for_the_payer_of_a_solana_transaction(counter: Counter) -> None:
    claimed = await counter.claim(counter.pay(), vouched=True, signature=None, payer=None)
    assert claimed.payment.from_address == str(counter.desk.payer.pubkey())


async def test_an_x402_payment_is_not_counted_again_as_a_claim(counter: Counter) -> None:
    desk = counter.desk
    signed = await desk.sign()
    await reserve(counter, signed, str(desk.payer.pubkey()))
    async with desk.open() as facilitator:
        settled = await facilitator.settle(signed, desk.requirements())
    desk.chain.advance(FINAL_BLOCKS)
    with pytest.raises(AlreadyCounted):
        await counter.claim(settled.transaction)
    assert await counter.count() == 1


async def test_a_claimed_transaction_is_not_counted_again_as_an_x402_payment(counter: Counter) -> None:
    desk = counter.desk
    signed = await desk.sign()
    async with desk.open() as facilitator:
        settled = await facilitator.settle(signed, desk.requirements())
    desk.chain.advance(FINAL_BLOCKS)
    await counter.claim(settled.transaction)
    with pytest.raises(AlreadyCounted):
        await reserve(counter, signed, str(desk.payer.pubkey()))


async def reserve(counter: Counter, signed: Any, payer: str) -> int:
    """As the paywall writes an x402 payment down before it is settled."""
    offer = Offer(
        network=NETWORK, chain="solana-devnet", asset=MINT, decimals=6, amount=AMOUNT, from_address=payer,
        to_address=str(counter.desk.seller.pubkey()),
        nonce=solana_payment.read_payment(signed).message_hash, tx_hash=None, scheme="exact",
        endpoint=ROUTE, requests_allocated=1, lifetime=timedelta(hours=1), valid_before=None,
    )  # fmt: skip
    async with counter.database.write() as tx:
        return (await payments.reserve(tx, offer, now=clock.now())).payment_id


async def test_what_a_delegate_paid_is_his_as_x402_counts_it_and_not_the_owners(counter: Counter) -> None:
    """The balances show whose it was; both may be one man's accounts, who would be paid twice."""
    desk, delegate = counter.desk, Keypair()
    owner, source = desk.payer, derive_ata(str(desk.payer.pubkey()), MINT)
    counter.pay(approve(source, owner.pubkey(), delegate.pubkey(), AMOUNT))
    to = derive_ata(str(desk.seller.pubkey()), MINT)
    tx_hash = counter.pay(transfer_tokens(source, to, delegate.pubkey(), AMOUNT), signers=(delegate,))
    with pytest.raises(ClaimRefused, match="moves no USDC"):
        await counter.claim(tx_hash, owner)
    assert (await counter.claim(tx_hash, delegate)).payment.from_address == str(delegate.pubkey())


async def test_where_owner_and_delegate_both_signed_an_x402_payment_of_either_counts(
    counter: Counter,
) -> None:
    desk, delegate = counter.desk, Keypair()
    owner, source = desk.payer, derive_ata(str(desk.payer.pubkey()), MINT)
    counter.pay(approve(source, owner.pubkey(), delegate.pubkey(), AMOUNT))
    to = derive_ata(str(desk.seller.pubkey()), MINT)
    call = transfer_tokens(source, to, delegate.pubkey(), AMOUNT)
    tx_hash = counter.pay(call, signers=(owner, delegate))  # the owner pays the fee
    landing = await counter.node.find_landing(tx_hash, "finalized")
    assert landing is not None
    offer = Offer(
        network=NETWORK, chain="solana-devnet", asset=MINT, decimals=6, amount=AMOUNT,
        from_address=str(delegate.pubkey()), to_address=str(desk.seller.pubkey()),
        nonce=landing.message_hash, tx_hash=None, scheme="exact", endpoint=ROUTE, requests_allocated=1,
        lifetime=timedelta(hours=1), valid_before=None,
    )  # fmt: skip
    async with counter.database.write() as tx:
        await payments.reserve(tx, offer, now=clock.now())
    with pytest.raises(AlreadyCounted):
        await counter.claim(tx_hash, owner)


async def test_with_two_payers_in_one_transaction_nobody_can_claim_it(counter: Counter) -> None:
    """Balances do not say whose money went where: the poorer could claim what the richer paid."""
    desk, other = counter.desk, Keypair()
    desk.chain.give(other.pubkey(), MINT, PURSE)
    calls = desk.transfer(AMOUNT), desk.transfer(2 * AMOUNT, source=other)
    tx_hash = counter.pay(*calls, signers=(desk.payer, other))
    for account in (desk.payer, other):
        with pytest.raises(ClaimRefused, match="not clear who pays"):
            await counter.claim(tx_hash, account)


async def test_the_wrong_recipient_token_and_too_little_buy_nothing(counter: Counter) -> None:
    desk, stranger, mint = counter.desk, Keypair(), str(Pubkey.new_unique())
    desk.chain.give(stranger.pubkey(), MINT, 0)
    desk.chain.make_mint(mint)
    for owner, amount in ((desk.payer, PURSE), (desk.seller, 0)):
        desk.chain.give(owner.pubkey(), mint, amount)
    for call, why in (
        (desk.transfer(AMOUNT - 1), "costs 10000"),
        (desk.transfer(AMOUNT, to=stranger.pubkey()), "moves no"),
        (desk.transfer(AMOUNT, mint=mint), "moves no"),
    ):
        with pytest.raises(ClaimRefused, match=why):
            await counter.claim(counter.pay(call))


async def test_what_comes_back_within_the_transaction_was_not_paid(counter: Counter) -> None:
    """The seller's own account pays it back: the balances, and no transfer by itself, say what was paid."""
    desk = counter.desk
    back = desk.transfer(AMOUNT - 1, source=desk.seller, to=desk.payer.pubkey())
    tx_hash = counter.pay(desk.transfer(2 * AMOUNT - 2), back, signers=(desk.payer, desk.seller))
    with pytest.raises(ClaimRefused, match="costs 10000"):
        await counter.claim(tx_hash)


async def test_an_account_that_changes_its_owner_has_not_lost_its_tokens(counter: Counter) -> None:
    """SetAuthority hands the payer's account to another, who then looks like the one who paid from it."""
    desk, thief = counter.desk, Keypair()
    source = derive_ata(str(desk.payer.pubkey()), MINT)
    hand_over = Instruction(
        Pubkey.from_string(TOKEN_PROGRAM_ADDRESS),
        bytes([6, 2, 1]) + bytes(thief.pubkey()),
        [
            AccountMeta(Pubkey.from_string(source), is_signer=False, is_writable=True),
            AccountMeta(desk.payer.pubkey(), is_signer=True, is_writable=False),
        ],
    )
    tx_hash = counter.pay(desk.transfer(AMOUNT), hand_over, signers=(thief, desk.payer))
    with pytest.raises(ClaimRefused):
        await counter.claim(tx_hash, thief)
    assert (await counter.claim(tx_hash)).payment.amount == AMOUNT


async def test_what_is_not_final_landed_with_an_error_or_is_old_is_refused(counter: Counter) -> None:
    desk = counter.desk
    young = desk.send(desk.transfer(AMOUNT))
    with pytest.raises(TransactionTooYoung):
        await counter.claim(young)
    desk.chain.advance(FINAL_BLOCKS)
    with pytest.raises(ClaimRefused, match="older than"):
        await counter.claim(young, later=AGE_MAX + timedelta(minutes=5))
    desk.chain.behaviour.before_landing.append(desk.drain)
    with pytest.raises(ClaimRefused, match="failed on chain"):
        await counter.claim(counter.pay())
    with pytest.raises(TransactionTooYoung):
        await counter.claim(str(Keypair().sign_message(b"never sent")))
    for text in ("0x" + "ab" * 32, "", "z" * 90):
        with pytest.raises(MalformedHash):
            await counter.claim(text)


async def test_a_node_of_another_network_is_not_asked_what_was_paid(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx_hash = counter.pay()
    monkeypatch.setattr("fixtures.solana_rpc.GENESIS_HASH", "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
    with pytest.raises(ChainUnreachable):
        await counter.claim(tx_hash)


async def test_the_api_takes_the_claim_of_a_solana_payer_without_any_key(counter: Counter) -> None:
    desk = counter.desk
    settings = PaymentsSettings(
        routes={ROUTE: PaidRoute("$0.01", requests=10)},
        payees=[Payee("solana-devnet", str(desk.seller.pubkey()))],
        rpc_urls={NETWORK: desk.chain.url},
    )
    app, tx_hash = create_api(desk.database_url, settings), counter.pay()
    asked = {"network": "solana-devnet", "tx_hash": tx_hash, "payer": str(desk.payer.pubkey())}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        refused = await client.post("/v1/payments", json=asked)
        assert refused.status_code == 401
        signature = desk.payer.sign_message(refused.json()["message"].encode())
        answer = await client.post("/v1/payments", json=asked | {"signature": str(signature)})
    assert answer.status_code == 201, answer.text
    assert answer.json()["requests_remaining"] == 10
    assert answer.json()["access_token"].startswith("tbk_")
