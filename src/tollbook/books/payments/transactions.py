"""Transactions that are presented as payment: what each moved to the seller, as its chain says."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from tollbook.books.payments.rules import Option
from tollbook.books.payments.solana.node import SolanaNode
from tollbook.books.payments.solana.truth import find_accounts
from tollbook.core.chains import (
    SOLANA_FINAL,
    Chain,
    Receipt,
    decode_authorization_used,
    decode_transfer,
)
from tollbook.core.errors import Refusal

AGE_MAX = timedelta(days=7)
ANSWER_SECONDS = 5


class ClaimRefused(Refusal):
    """The transaction buys nothing; the reason says which rule it breaks."""

    reason: ClassVar[str] = "claim-refused"
    status: ClassVar[int] = 422


class TransactionTooYoung(Refusal):
    """The transaction is not on chain, or not deep enough, yet. Ask again later."""

    reason: ClassVar[str] = "transaction-too-young"
    status: ClassVar[int] = 409


@dataclass(frozen=True, slots=True)
class Sent:
    """What one payer sent the seller in a transaction; `amount` in minor units of the token that is asked.

    `nonces` are the authorizations that it used, under which x402 payments are counted; `signers` are those
    whose payments these may be.
    """

    tx_hash: str
    block_number: int
    confirmations: int
    payer: str
    amount: int
    nonces: tuple[str, ...]
    signers: tuple[str, ...]


async def read_sent(
    node: Chain | SolanaNode, option: Option, tx_hash: str, payer: str | None, now: datetime
) -> Sent:
    """Return what a final transaction paid for an option; `payer` says by whom, where it may be several.

    Raises ChainUnreachable, ClaimRefused, TransactionTooYoung.
    """
    if isinstance(node, SolanaNode):
        return await _read_solana(node, option, tx_hash, payer, now)
    receipt, confirmations = await _read_receipt(node, option, tx_hash, now)
    return _read_logs(option, receipt, confirmations, payer)


async def _read_receipt(chain: Chain, option: Option, tx_hash: str, now: datetime) -> tuple[Receipt, int]:
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
    _check_age(block.time, now)
    return receipt, confirmations


def _check_age(time: datetime, now: datetime) -> None:
    if now - time > AGE_MAX:
        raise ClaimRefused(f"The transaction is older than {AGE_MAX.days} days.")


def _read_logs(option: Option, receipt: Receipt, confirmations: int, payer: str | None) -> Sent:
    asset, recipient = option.requirements.asset.lower(), option.requirements.pay_to.lower()
    transfers = [
        transfer
        for log in receipt.logs
        if (transfer := decode_transfer(log)) is not None
        and (transfer.token, transfer.receiver) == (asset, recipient)
        and payer in (None, transfer.sender)
    ]
    senders = {transfer.sender for transfer in transfers}
    if not transfers:
        raise _say_nothing(option, payer)
    if len(senders) > 1:
        raise ClaimRefused("Several accounts pay in this transaction: name one in `payer`.")
    sender = senders.pop()
    return Sent(
        tx_hash=receipt.transaction_hash,
        block_number=receipt.block_number,
        confirmations=confirmations,
        payer=sender,
        amount=sum(transfer.amount for transfer in transfers),
        nonces=tuple(_find_nonces(receipt, asset, sender)),
        signers=(sender,),
    )


def _find_nonces(receipt: Receipt, asset: str, sender: str) -> list[str]:
    """A transfer by EIP-3009 has its authorization's identity, under which an x402 payment is counted."""
    used = [decode_authorization_used(log) for log in receipt.logs]
    return [one.nonce for one in used if one is not None and (one.token, one.authorizer) == (asset, sender)]


async def _read_solana(
    node: SolanaNode, option: Option, tx_hash: str, payer: str | None, now: datetime
) -> Sent:
    """What the recipient's token account gained, if it is clear who paid: one owner alone lost some.

    A message can land once, so its hash is its nonce; x402 payments are counted under the same.
    """
    await node.check_network()
    landing = await node.find_landing(tx_hash, "finalized")
    if landing is None:
        raise TransactionTooYoung(
            f"{option.network.name} has no such transaction that is final yet. Ask again soon.",
            retry_after_seconds=ANSWER_SECONDS,
        )
    if landing.has_failed:
        raise ClaimRefused("The transaction failed on chain: no money moved.")
    _check_age(await node.get_time(landing.slot), now)
    asset, recipient = option.requirements.asset, option.requirements.pay_to
    amount = sum(landing.moved.get((account, asset), 0) for account in find_accounts(recipient, asset))
    payers = [landing.name_payer(loser) for loser in landing.find_losers(asset)]
    if amount <= 0 or (payer is not None and payer not in payers):
        raise _say_nothing(option, payer)
    if len(payers) != 1:
        raise ClaimRefused("It is not clear who pays in this transaction: send one with a single payer.")
    return Sent(
        tx_hash=tx_hash,
        block_number=landing.slot,
        confirmations=SOLANA_FINAL,
        payer=payers[0],
        amount=amount,
        nonces=(landing.message_hash,),
        signers=landing.signers,
    )


def _say_nothing(option: Option, payer: str | None) -> ClaimRefused:
    by = f" by {payer}" if payer else ""
    return ClaimRefused(f"It moves no {option.token.symbol} to {option.requirements.pay_to}{by}.")
