"""The older way to pay: the payer sent the tokens himself and presents the transaction's hash, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar

from eth_account import Account
from eth_account.messages import encode_defunct
from pydantic import BaseModel, ConfigDict, Field

from tollbook.books.payments import payments, tokens
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.rules import REQUESTS_MAX, Option, Toll, Tolls
from tollbook.books.payments.tokens import Grant
from tollbook.core.chains import (
    Chain,
    Receipt,
    UnknownNetwork,
    decode_authorization_used,
    decode_transfer,
    find_network,
    normalize_hash,
)
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal

AGE_MAX = timedelta(days=7)
SCHEME = "transfer"  # no x402 scheme: a plain ERC-20 transfer
ANSWER_SECONDS = 5


class ClaimRequest(BaseModel):
    """A transaction presented as payment for a route.

    `signature` is the payer's EIP-191 signature of `claim_message(...)`, which proves that it was he who
    paid; an API key with payments:write vouches for him instead, and then `payer` names him where a
    transaction has several senders.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = Field(max_length=64, examples=["eip155:8453"])
    tx_hash: str = Field(max_length=80, examples=["0x" + "ab" * 32])
    endpoint: str | None = Field(
        default=None, max_length=256, description="the route to buy; optional if one"
    )
    payer: str | None = Field(default=None, max_length=42)
    signature: str | None = Field(default=None, max_length=300)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The payment that a transaction became, and the access token it bought, shown this once."""

    payment: Payment
    access_token: str = field(repr=False)
    requests_remaining: int


class ClaimRefused(Refusal):
    """The transaction buys nothing; the reason says which rule it breaks."""

    reason: ClassVar[str] = "claim-refused"
    status: ClassVar[int] = 422


class PayerUnproven(Refusal):
    """Nothing proves that the one who presents the hash is the one who paid."""

    reason: ClassVar[str] = "payer-unproven"
    status: ClassVar[int] = 401


class TransactionTooYoung(Refusal):
    """The transaction is not on chain, or not deep enough, yet. Ask again later."""

    reason: ClassVar[str] = "transaction-too-young"
    status: ClassVar[int] = 409


def claim_message(network: str, tx_hash: str, endpoint: str) -> str:
    """The text a payer signs (EIP-191, personal_sign) to claim his transaction."""
    return f"Tollbook payment claim\nnetwork: {network}\ntransaction: {tx_hash}\nroute: {endpoint}"


async def claim(
    database: Database,
    chains: Mapping[str, Chain],
    tolls: Tolls,
    request: ClaimRequest,
    *,
    vouched: bool,
    now: datetime,
) -> Claimed:
    """Check a transaction on chain and turn it into a payment with a token.

    Presented again by its payer, the same payment gives a new token for what is left; the old one ends.
    Raises UnknownNetwork, MalformedHash, ChainUnreachable, ClaimRefused, PayerUnproven, TransactionTooYoung,
    AlreadyCounted (it was counted as somebody's x402 payment).
    """
    network = find_network(request.network)
    tx_hash = normalize_hash(request.tx_hash)
    if network.id not in chains:
        raise UnknownNetwork(f"This server watches no node of {network.name}: set TOLLBOOK_RPC_URLS.")
    toll = _choose_toll(tolls, request.endpoint)
    option = _choose_option(toll, network.id)
    payer = _prove_payer(request, network.id, tx_hash, toll.key, vouched=vouched)
    receipt, confirmations = await _read_transaction(chains[network.id], option, tx_hash, now)
    offer = _make_offer(toll, option, receipt, payer)
    async with database.write() as tx:
        try:
            await _refuse_paid(tx, offer, receipt)
            reserved = await payments.reserve(tx, offer, now=now)
        except AlreadyCounted as counted:
            return await _claim_again(tx, counted, offer.from_address, tx_hash, now)
        payment = await payments.settle(
            tx,
            reserved.payment_id,
            tx_hash=tx_hash,
            block_number=receipt.block_number,
            confirmations=confirmations,
            now=now,
        )
        return _make_claimed(payment, await tokens.issue(tx, payment.payment_id, now=now))


async def _refuse_paid(tx: WriteTx, offer: Offer, receipt: Receipt) -> None:
    """Raise AlreadyCounted where x402 payments of this payer are what the transaction moved.

    It may have used several of his authorizations. Settlements that are being booked are waited for; those
    that come after see this claim.
    """
    await tx.execute(
        """
        SELECT FROM payments.x402_payments
        WHERE network = %(network)s AND from_address = %(payer)s AND status = 'pending'
        ORDER BY payment_id FOR NO KEY UPDATE
        """,
        {"network": offer.network, "payer": offer.from_address},
    )
    for nonce in _find_nonces(receipt, offer.asset, offer.from_address) or [None]:
        same = replace(offer, nonce=nonce, tx_hash=receipt.transaction_hash)
        await payments.refuse_counted(tx, same)


async def _claim_again(
    tx: WriteTx, counted: AlreadyCounted, payer: str, tx_hash: str, now: datetime
) -> Claimed:
    """The payer lost his token: he gets another for the same payment, never a second payment.

    So does one whose x402 answer was lost on its way: the transaction is his, and he proved who he is.
    """
    payment = await payments.get(tx, counted.payment_id)
    if (payment.tx_hash, payment.from_address) != (tx_hash, payer):
        raise counted
    return _make_claimed(payment, await tokens.rotate(tx, payment.payment_id, now=now))


def _make_claimed(payment: Payment, grant: Grant) -> Claimed:
    return Claimed(payment, grant.secret, payment.requests_allocated - payment.requests_used)


def _choose_toll(tolls: Tolls, endpoint: str | None) -> Toll:
    known = {toll.key: toll for toll in tolls.all}
    if endpoint is None and len(known) == 1:
        return next(iter(known.values()))
    if endpoint not in known:
        raise ClaimRefused(
            f"Say which route to buy in `endpoint`: {', '.join(known) or 'none is sold here'}."
        )
    return known[endpoint]


def _choose_option(toll: Toll, network: str) -> Option:
    for option in toll.options:
        if option.network.id == network:
            return option
    offered = ", ".join(option.network.id for option in toll.options)
    raise ClaimRefused(f"{toll.key} is not sold on {network}; it is on {offered}.")


def _prove_payer(
    request: ClaimRequest, network: str, tx_hash: str, endpoint: str, *, vouched: bool
) -> str | None:
    if vouched and request.signature is None:
        return request.payer.lower() if request.payer else None
    message = claim_message(network, tx_hash, endpoint)
    if request.signature is None:
        raise PayerUnproven(
            "Anybody can read a hash off the chain. Sign `message` with the paying account "
            "(EIP-191 personal_sign) and send it as `signature`.",
            message=message,
        )
    try:
        signer = Account.recover_message(encode_defunct(text=message), signature=request.signature)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:  # every malformed signature fails in its own way, deep in the library
        raise PayerUnproven("The signature is malformed: it is 65 bytes in hex.", message=message) from error
    return signer.lower()


async def _read_transaction(chain: Chain, option: Option, tx_hash: str, now: datetime) -> tuple[Receipt, int]:
    receipt = await chain.get_transaction_receipt(tx_hash)
    if receipt is None:
        raise TransactionTooYoung(
            f"{option.network.name} has no such transaction yet. Ask again when it is mined.",
            retry_after_seconds=ANSWER_SECONDS,
        )
    if not receipt.succeeded:
        raise ClaimRefused("The transaction failed on chain: no money moved.")
    confirmations = await chain.get_block_number() - receipt.block_number + 1
    if confirmations < option.network.confirmations:
        raise TransactionTooYoung(
            f"It has {confirmations} of {option.network.confirmations} confirmations. Ask again soon.",
            confirmations=confirmations,
            retry_after_seconds=ANSWER_SECONDS,
        )
    block = await chain.get_block(receipt.block_number)
    if block is None or block.hash != receipt.block_hash:
        raise TransactionTooYoung(
            "The chain is being reorganised. Ask again.", retry_after_seconds=ANSWER_SECONDS
        )
    if now - block.time > AGE_MAX:
        raise ClaimRefused(f"The transaction is older than {AGE_MAX.days} days.")
    return receipt, confirmations


def _make_offer(toll: Toll, option: Option, receipt: Receipt, payer: str | None) -> Offer:
    requirements = option.requirements
    asset, recipient = requirements.asset.lower(), requirements.pay_to.lower()
    transfers = [
        transfer
        for log in receipt.logs
        if (transfer := decode_transfer(log)) is not None
        and (transfer.token, transfer.receiver) == (asset, recipient)
        and payer in (None, transfer.sender)
    ]
    senders = {transfer.sender for transfer in transfers}
    if not transfers:
        by = f" by {payer}" if payer else ""
        raise ClaimRefused(f"It moves no {option.token.symbol} to {requirements.pay_to}{by}.")
    if len(senders) > 1:
        raise ClaimRefused("Several accounts pay in this transaction: name one in `payer`.")
    sender = senders.pop()
    amount = sum(transfer.amount for transfer in transfers)
    nonce = next(iter(_find_nonces(receipt, asset, sender)), None)
    bought = amount // int(requirements.amount)
    if bought < 1:
        raise ClaimRefused(f"It pays {amount} minor units; {toll.key} costs {requirements.amount}.")
    return Offer(
        network=option.network.id,
        chain=option.network.name,
        asset=asset,
        decimals=option.token.decimals,
        amount=amount,
        from_address=sender,
        to_address=recipient,
        nonce=nonce,
        tx_hash=receipt.transaction_hash if nonce is None else None,
        scheme=SCHEME,
        endpoint=toll.key,
        requests_allocated=min(bought * toll.terms.requests, REQUESTS_MAX),
        lifetime=toll.terms.lifetime,
        valid_before=None,
    )


def _find_nonces(receipt: Receipt, asset: str, sender: str) -> list[str]:
    """A transfer by EIP-3009 has its authorization's identity, under which an x402 payment is counted."""
    used = [decode_authorization_used(log) for log in receipt.logs]
    return [one.nonce for one in used if one is not None and (one.token, one.authorizer) == (asset, sender)]
