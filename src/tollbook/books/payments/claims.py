"""The older way to pay: the payer sent the tokens himself and presents the transaction's hash, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar

from eth_account import Account
from eth_account.messages import encode_defunct
from pydantic import BaseModel, ConfigDict, Field
from solders.pubkey import Pubkey
from solders.signature import Signature

from tollbook.books.payments import ledger, payments, tokens
from tollbook.books.payments.errors import AlreadyCounted
from tollbook.books.payments.payments import Offer, Payment
from tollbook.books.payments.rules import REQUESTS_MAX, Option, Toll, Tolls
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.payment import normalize_signature
from tollbook.books.payments.tokens import Grant
from tollbook.books.payments.transactions import ClaimRefused, Sent, read_sent
from tollbook.core.chains import (
    Chain,
    Network,
    UnknownNetwork,
    find_network,
    normalize_address_on,
    normalize_hash,
)
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal

SCHEME = "transfer"  # no x402 scheme: a plain transfer of tokens


class ClaimRequest(BaseModel):
    """A transaction presented as payment for a route.

    `signature` is the payer's signature of `claim_message(...)`, which proves that it was he who paid: of
    EIP-191, in hex; on Solana Ed25519, in base 58, and then `payer` says whose. An API key with
    payments:write vouches for him instead; `payer` names him where a transaction has several senders.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = Field(max_length=64, examples=["eip155:8453"])
    tx_hash: str = Field(max_length=90, examples=["0x" + "ab" * 32])
    endpoint: str | None = Field(
        default=None, max_length=256, description="the route to buy; optional if one"
    )
    payer: str | None = Field(default=None, max_length=44)
    signature: str | None = Field(default=None, max_length=300)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The payment that a transaction became, and the access token it bought, shown this once."""

    payment: Payment
    access_token: str = field(repr=False)
    requests_remaining: int


class PayerUnproven(Refusal):
    """Nothing proves that the one who presents the hash is the one who paid."""

    reason: ClassVar[str] = "payer-unproven"
    status: ClassVar[int] = 401


def claim_message(network: str, tx_hash: str, endpoint: str) -> str:
    """The text a payer signs (EIP-191, personal_sign; on Solana its UTF-8) to claim his transaction."""
    return f"Tollbook payment claim\nnetwork: {network}\ntransaction: {tx_hash}\nroute: {endpoint}"


async def claim(
    database: Database,
    chains: Mapping[str, Chain | SolanaNode],
    tolls: Tolls,
    request: ClaimRequest,
    *,
    vouched: bool,
    now: datetime,
) -> Claimed:
    """Check a transaction on chain and turn it into a payment with a token.

    Presented again by its payer, the same payment gives a new token for what is left; the old one ends.
    Raises UnknownNetwork, MalformedHash, MalformedAddress, ChainUnreachable, ClaimRefused, PayerUnproven,
    TransactionTooYoung, AlreadyCounted (it was counted as somebody's x402 payment).
    """
    network = find_network(request.network)
    tx_hash = (normalize_signature if network.is_solana else normalize_hash)(request.tx_hash)
    if network.id not in chains:
        raise UnknownNetwork(f"This server watches no node of {network.name}: set TOLLBOOK_RPC_URLS.")
    toll = _choose_toll(tolls, request.endpoint)
    option = _choose_option(toll, network.id)
    payer = _prove_payer(request, network, tx_hash, toll.key, vouched=vouched)
    sent = await read_sent(chains[network.id], option, tx_hash, payer, now)
    offer = _make_offer(toll, option, sent)
    async with database.write() as tx:
        try:
            await _refuse_paid(tx, offer, sent, now)
            reserved = await payments.reserve(tx, offer, now=now)
        except AlreadyCounted as counted:
            return await _claim_again(tx, counted, offer.from_address, tx_hash, now)
        payment = await payments.settle(
            tx,
            reserved.payment_id,
            tx_hash=tx_hash,
            block_number=sent.block_number,
            confirmations=sent.confirmations,
            now=now,
        )
        return _make_claimed(payment, await tokens.issue(tx, payment.payment_id, now=now))


async def _refuse_paid(tx: WriteTx, offer: Offer, sent: Sent, now: datetime) -> None:
    """Raise AlreadyCounted where x402 payments of its signers are what the transaction moved.

    It may have used several authorizations. Settlements that are being booked are waited for; those that
    come after see this claim.
    """
    await tx.execute(
        """
        SELECT FROM payments.x402_payments
        WHERE network = %(network)s AND from_address = ANY(%(signers)s::text[]) AND status = 'pending'
        ORDER BY payment_id FOR NO KEY UPDATE
        """,
        {"network": offer.network, "signers": list(sent.signers)},
    )
    for signer in sent.signers:
        for nonce in sent.nonces or [None]:
            same = replace(offer, from_address=signer, nonce=nonce, tx_hash=sent.tx_hash)
            await payments.refuse_counted(tx, same)
    for signer in sent.signers:
        same = replace(offer, from_address=signer)
        if not await ledger.claim(tx, same, sent.tx_hash, sent.nonces, now=now):
            raise ClaimRefused(
                "It settles an x402 payment that bought its answer, or that is being settled. If you were "
                "not served, claim it again in some minutes."
            )


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
    request: ClaimRequest, network: Network, tx_hash: str, endpoint: str, *, vouched: bool
) -> str | None:
    named = request.payer and normalize_address_on(network.id, request.payer)
    if vouched and request.signature is None:
        return named
    message = claim_message(network.id, tx_hash, endpoint)
    if request.signature is None or (network.is_solana and named is None):
        how = (
            "and send it as `signature`, in base 58, with `payer`"
            if network.is_solana
            else ("(EIP-191 personal_sign) and send it as `signature`")
        )
        raise PayerUnproven(
            f"Anybody can read a hash off the chain. Sign `message` with the paying account {how}.",
            message=message,
        )
    if named is not None and network.is_solana:
        return _check_ed25519(named, request.signature, message)
    try:
        signer = Account.recover_message(encode_defunct(text=message), signature=request.signature)  # pyright: ignore[reportUnknownMemberType]
    except Exception as error:  # every malformed signature fails in its own way, deep in the library
        raise PayerUnproven("The signature is malformed: it is 65 bytes in hex.", message=message) from error
    return signer.lower()


def _check_ed25519(payer: str, text: str, message: str) -> str:
    try:
        is_his = Signature.from_string(text).verify(Pubkey.from_string(payer), message.encode())
    except ValueError:
        raise PayerUnproven(
            "The signature is malformed: it is 64 bytes in base 58.", message=message
        ) from None
    if not is_his:
        raise PayerUnproven(f"The signature is not {payer}'s of `message`.", message=message)
    return payer


def _make_offer(toll: Toll, option: Option, sent: Sent) -> Offer:
    requirements = option.requirements
    nonce = next(iter(sent.nonces), None)
    bought = sent.amount // int(requirements.amount)
    if bought < 1:
        raise ClaimRefused(f"It pays {sent.amount} minor units; {toll.key} costs {requirements.amount}.")
    return Offer(
        network=option.network.id,
        chain=option.network.name,
        asset=requirements.asset,
        decimals=option.token.decimals,
        amount=sent.amount,
        from_address=sent.payer,
        to_address=requirements.pay_to,
        nonce=nonce,
        tx_hash=sent.tx_hash if nonce is None else None,
        scheme=SCHEME,
        endpoint=toll.key,
        requests_allocated=min(bought * toll.terms.requests, REQUESTS_MAX),
        lifetime=toll.terms.lifetime,
        valid_before=None,
    )
