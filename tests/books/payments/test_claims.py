"""Transactions presented as payments: checked on a real chain, counted once, for the one who paid."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from clients.pay import require, sign
from fixtures.authorizations import authorize, send_together
from fixtures.payments import make_offer
from tollbook.books.payments import claims, payments, tokens
from tollbook.books.payments.claims import (
    Claimed,
    ClaimRefused,
    ClaimRequest,
    PayerUnproven,
    claim,
    claim_message,
)
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.rules import PaidRoute, Payee, Tolls, compile_tolls
from tollbook.books.payments.transactions import AGE_MAX, TransactionTooYoung, read_sent
from tollbook.core import chains, clock
from tollbook.core.chains import Chain, ChainUnreachable, MalformedHash, UnknownNetwork, find_network
from tollbook.core.database import Database
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, LocalChain

PRICE = 10_000
ROUTE = "GET /weather"


@dataclass
class Desk:
    """Where claims are made: the books, the node, what is sold, and the local chain's own console."""

    database: Database
    node: Chain
    tolls: Tolls
    chain: LocalChain
    seller: str
    token: str

    def transfer(self, payer: LocalAccount, amount: int, receiver: str | None = None) -> str:
        self.chain.set_gas_money(payer.address, GAS_MONEY_WEI)
        self.chain.call("anvil_impersonateAccount", payer.address)
        data = keccak(text="transfer(address,uint256)")[:4]
        data += encode(["address", "uint256"], [to_checksum_address(receiver or self.seller), amount])
        receipt = self.chain.send({"from": payer.address, "to": self.token, "data": "0x" + data.hex()})
        return receipt["transactionHash"]

    async def claim(
        self, request: ClaimRequest, *, vouched: bool = False, later: timedelta | None = None
    ) -> Claimed:
        now = clock.now() + (later or timedelta(0))
        return await claim(self.database, {NETWORK: self.node}, self.tolls, request, vouched=vouched, now=now)


@pytest.fixture
async def desk(
    database: Database, chain: LocalChain, token: str, seller: LocalAccount
) -> AsyncIterator[Desk]:
    tolls = compile_tolls({ROUTE: PaidRoute("$0.01", requests=10)}, [Payee(NETWORK, seller.address)])
    async with Chain(NETWORK, chain.url) as node:
        yield Desk(database, node, tolls, chain, seller.address, token)


def signed(account: LocalAccount, tx_hash: str, route: str = ROUTE) -> ClaimRequest:
    message = encode_defunct(text=claim_message(NETWORK, tx_hash, route))
    signature = "0x" + account.sign_message(message).signature.hex().removeprefix("0x")
    return ClaimRequest(network=NETWORK, tx_hash=tx_hash, signature=signature)


async def test_money_sent_beforehand_buys_in_proportion(desk: Desk, payer: LocalAccount) -> None:
    claimed = await desk.claim(signed(payer, desk.transfer(payer, 3 * PRICE + 5)))
    assert claimed.requests_remaining == 30
    assert claimed.payment.amount == 3 * PRICE + 5
    assert claimed.payment.from_address == payer.address.lower()
    assert (claimed.payment.status, claimed.payment.confirmations) == ("verified", 1)


async def test_a_transaction_counts_once_however_often_and_however_spelt(
    desk: Desk, payer: LocalAccount
) -> None:
    tx_hash = desk.transfer(payer, PRICE)
    first = signed(payer, tx_hash)
    shouted = first.model_copy(update={"tx_hash": "0x" + tx_hash[2:].upper()})
    answers = await asyncio.gather(*(desk.claim(request) for request in [first, shouted] * 4))
    assert len({answer.payment.payment_id for answer in answers}) == 1
    assert len({answer.access_token for answer in answers}) == 8
    async with desk.database.read() as tx:
        assert len(await payments.page(tx)) == 1
        live = await tx.value("SELECT count(*) FROM payments.x402_tokens WHERE revoked_at IS NULL")
    assert live == 1


async def test_a_stranger_cannot_claim_what_another_paid(desk: Desk, payer: LocalAccount) -> None:
    tx_hash = desk.transfer(payer, PRICE)
    with pytest.raises(ClaimRefused):
        await desk.claim(signed(Account.create(), tx_hash))
    with pytest.raises(PayerUnproven) as unproven:
        await desk.claim(ClaimRequest(network=NETWORK, tx_hash=tx_hash))
    assert unproven.value.details["message"] == claim_message(NETWORK, tx_hash, ROUTE)
    with pytest.raises(PayerUnproven):
        await desk.claim(ClaimRequest(network=NETWORK, tx_hash=tx_hash, signature="0x1234"))


async def test_an_operator_may_vouch_for_the_payer(desk: Desk, payer: LocalAccount) -> None:
    request = ClaimRequest(network="local", tx_hash=desk.transfer(payer, PRICE))
    assert find_network("local").id == NETWORK
    assert (await desk.claim(request, vouched=True)).payment.from_address == payer.address.lower()


async def test_an_x402_payment_is_not_counted_again_as_a_transfer(
    desk: Desk, payer: LocalAccount, operator: LocalAccount
) -> None:
    """Its transaction names the authorization, whose identity is taken before its settlement is booked."""
    requirements = require(desk.token, desk.seller, PRICE)
    payment = await sign(payer, requirements)
    facilitator = InProcessFacilitator({NETWORK: desk.chain.url}, "0x" + operator.key.hex(), desk.database)
    settled = await facilitator.settle(payment, requirements)
    await facilitator.aclose()
    option = desk.tolls.all[0].options[0]
    sent = await read_sent(desk.node, option, settled.transaction, None, clock.now())
    offer = claims._make_offer(desk.tolls.all[0], option, sent)
    assert offer.nonce == payment.payload["authorization"]["nonce"]
    async with desk.database.write() as tx:
        await payments.reserve(tx, replace(offer, scheme="exact"), now=clock.now())
    with pytest.raises(AlreadyCounted):
        await desk.claim(signed(payer, settled.transaction))


async def reserve(desk: Desk, payer: LocalAccount, nonce: str) -> int:
    """An x402 payment that is about to be settled, as the paywall enters it."""
    offer = make_offer(
        network=NETWORK, asset=desk.token, amount=PRICE, from_address=payer.address, to_address=desk.seller,
        nonce=nonce,
    )  # fmt: skip
    async with desk.database.write() as tx:
        return (await payments.reserve(tx, offer, now=clock.now())).payment_id


async def settle(desk: Desk, payment_id: int, tx_hash: str) -> None:
    async with desk.database.write() as tx:
        await payments.settle(
            tx, payment_id, tx_hash=tx_hash, block_number=1, confirmations=1, now=clock.now()
        )


@pytest.mark.parametrize("is_settled", [False, True])
async def test_an_x402_payment_is_not_claimed_by_another_nonce_of_its_transaction(
    desk: Desk, schemes_chain: LocalChain, payer: LocalAccount, is_settled: bool
) -> None:
    """Its payer may have it mined by himself, after an authorization of his own to himself."""
    to_himself, to_the_seller = authorize(payer, payer.address, 1), authorize(payer, desk.seller, PRICE)
    tx_hash = send_together(schemes_chain, to_himself, to_the_seller)
    payment_id = await reserve(desk, payer, to_the_seller.nonce)
    if is_settled:
        await settle(desk, payment_id, tx_hash)
        async with desk.database.write() as tx:
            await tokens.issue(tx, payment_id, now=clock.now())
        assert (await desk.claim(signed(payer, tx_hash))).payment.payment_id == payment_id
    else:
        with pytest.raises(AlreadyCounted):
            await desk.claim(signed(payer, tx_hash))
    async with desk.database.read() as tx:
        assert [payment.payment_id for payment in await payments.page(tx)] == [payment_id]


async def test_what_was_claimed_is_not_settled_as_an_x402_payment_too(
    desk: Desk, payer: LocalAccount
) -> None:
    """Permit2 logs no nonces: a claim cannot know that its transfer is also the end of a payment."""
    payment_id = await reserve(desk, payer, "permit2:5")
    tx_hash = desk.transfer(payer, PRICE)
    await desk.claim(signed(payer, tx_hash))
    with pytest.raises(AlreadyCounted):
        await settle(desk, payment_id, tx_hash)


async def test_a_claim_waits_for_the_settlement_that_is_being_booked(desk: Desk, payer: LocalAccount) -> None:
    payment_id, tx_hash = await reserve(desk, payer, "permit2:5"), desk.transfer(payer, PRICE)
    async with desk.database.write() as tx:
        await payments.settle(
            tx, payment_id, tx_hash=tx_hash, block_number=1, confirmations=1, now=clock.now()
        )
        claiming = asyncio.create_task(desk.claim(signed(payer, tx_hash)))
        await asyncio.wait([claiming], timeout=0.5)
        assert not claiming.done()
    assert (await claiming).payment.payment_id == payment_id


async def test_too_little_the_wrong_recipient_and_old_money_buy_nothing(
    desk: Desk, payer: LocalAccount
) -> None:
    with pytest.raises(ClaimRefused, match="costs 10000"):
        await desk.claim(signed(payer, desk.transfer(payer, PRICE - 1)))
    with pytest.raises(ClaimRefused, match="moves no"):
        await desk.claim(signed(payer, desk.transfer(payer, PRICE, Account.create().address)))
    with pytest.raises(ClaimRefused, match="older than"):
        await desk.claim(signed(payer, desk.transfer(payer, PRICE)), later=AGE_MAX + timedelta(minutes=5))


async def test_a_transaction_that_is_not_there_yet_is_asked_for_again(
    desk: Desk, payer: LocalAccount
) -> None:
    with pytest.raises(TransactionTooYoung):
        await desk.claim(signed(payer, "0x" + "ab" * 32))


async def test_confirmations_are_waited_for(
    desk: Desk, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = signed(payer, desk.transfer(payer, PRICE))
    patient = replace(desk.tolls.all[0].options[0].network, confirmations=3)
    option = replace(desk.tolls.all[0].options[0], network=patient)
    monkeypatch.setattr(
        desk, "tolls", replace(desk.tolls, all=(replace(desk.tolls.all[0], options=(option,)),))
    )
    with pytest.raises(TransactionTooYoung, match="1 of 3"):
        await desk.claim(request)
    desk.chain.call("anvil_mine", "0x2")
    assert (await desk.claim(request)).payment.confirmations == 3


async def test_what_is_not_a_claim_is_refused_by_name(desk: Desk, payer: LocalAccount) -> None:
    with pytest.raises(MalformedHash):
        await desk.claim(signed(payer, "0x12"))
    with pytest.raises(UnknownNetwork):
        await desk.claim(ClaimRequest(network="eip155:8453", tx_hash="0x" + "ab" * 32))
    with pytest.raises(ClaimRefused, match="which route"):
        await desk.claim(ClaimRequest(network=NETWORK, tx_hash="0x" + "ab" * 32, endpoint="GET /else"))


async def test_an_unreachable_chain_counts_nothing(
    desk: Desk, payer: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "WAIT_SECONDS_MAX", 0.01)
    async with Chain(NETWORK, "http://127.0.0.1:9") as nowhere:
        desk.node = nowhere
        with pytest.raises(ChainUnreachable):
            await desk.claim(signed(payer, "0x" + "ab" * 32))
