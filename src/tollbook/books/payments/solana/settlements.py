"""What the Solana facilitator signed and what became of it: payments.x402_solana_settlements.

What may follow what:

    (new)  -> signed    begin: before the message is broadcast, once for all processes
    signed -> settled   the chain agrees that the recipient has the amount
    signed -> failed    it landed with an error, or it can land no more
    signed -> differs   it landed, and the recipient got another amount
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from tollbook.core.database import ReadTx, WriteTx

Status = Literal["signed", "settled", "failed", "differs"]

OPEN_MAX = 500  # that find_open gives at once
REASON_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class SolanaSettlement:
    """One message that the fee payer signed. Amounts in minor units; `signature` is the transaction's id."""

    network: str
    message_hash: bytes
    signed_at: datetime
    sent_at: datetime
    ended_at: datetime | None
    signed_slot: int
    last_valid_height: int
    landed_slot: int | None
    fee_lamports: int | None
    sends: int
    amount: int
    amount_moved: int | None
    status: Status
    signature: str
    fee_payer: str
    payer: str
    asset: str
    pay_to: str
    destination: str
    reason: str | None

    def __post_init__(self) -> None:
        # PostgreSQL's numeric arrives as Decimal.
        object.__setattr__(self, "amount", int(self.amount))
        if self.amount_moved is not None:
            object.__setattr__(self, "amount_moved", int(self.amount_moved))


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be broadcast; as in SolanaSettlement."""

    network: str
    message_hash: bytes
    signed_slot: int
    last_valid_height: int
    amount: int
    signature: str
    fee_payer: str
    payer: str
    asset: str
    pay_to: str
    destination: str


@dataclass(frozen=True, slots=True)
class End:
    """What became of a message; as in SolanaSettlement."""

    status: Literal["settled", "failed", "differs"]
    landed_slot: int | None
    fee_lamports: int | None
    amount_moved: int | None
    reason: str | None


async def begin(tx: WriteTx, intent: Intent, *, now: datetime) -> bool:
    """Write the intent down; whether it is new, and so the caller's to broadcast once this has committed."""
    inserted = await tx.execute(
        """
        INSERT INTO payments.x402_solana_settlements (
            network, message_hash, signed_at, sent_at, signed_slot, last_valid_height, amount, status,
            signature, fee_payer, payer, asset, pay_to, destination)
        VALUES (
            %(network)s, %(message_hash)s, %(now)s, %(now)s, %(signed_slot)s, %(last_valid_height)s,
            %(amount)s, 'signed', %(signature)s, %(fee_payer)s, %(payer)s, %(asset)s, %(pay_to)s,
            %(destination)s)
        ON CONFLICT (network, message_hash) DO NOTHING
        """,
        {
            "network": intent.network,
            "message_hash": intent.message_hash,
            "now": now,
            "signed_slot": intent.signed_slot,
            "last_valid_height": intent.last_valid_height,
            "amount": Decimal(intent.amount),
            "signature": intent.signature,
            "fee_payer": intent.fee_payer,
            "payer": intent.payer,
            "asset": intent.asset,
            "pay_to": intent.pay_to,
            "destination": intent.destination,
        },
    )
    return inserted == 1


async def find(tx: ReadTx, network: str, message_hash: bytes) -> SolanaSettlement | None:
    """The settlement of a message, or None where it was never signed here."""
    return await tx.maybe(
        """
        SELECT network, message_hash, signed_at, sent_at, ended_at, signed_slot, last_valid_height,
               landed_slot, fee_lamports, sends, amount, amount_moved, status, signature, fee_payer, payer,
               asset, pay_to, destination, reason
        FROM payments.x402_solana_settlements
        WHERE network = %(network)s AND message_hash = %(message_hash)s
        """,
        {"network": network, "message_hash": message_hash},
        into=SolanaSettlement,
    )


async def find_open(tx: ReadTx, networks: list[str], limit: int = OPEN_MAX) -> list[SolanaSettlement]:
    """Those of which the end is not known, the oldest first; at most OPEN_MAX."""
    return await tx.all(
        """
        SELECT network, message_hash, signed_at, sent_at, ended_at, signed_slot, last_valid_height,
               landed_slot, fee_lamports, sends, amount, amount_moved, status, signature, fee_payer, payer,
               asset, pay_to, destination, reason
        FROM payments.x402_solana_settlements
        WHERE status = 'signed' AND network = ANY(%(networks)s::text[])
        ORDER BY signed_at LIMIT %(limit)s
        """,
        {"networks": networks, "limit": min(limit, OPEN_MAX)},
        into=SolanaSettlement,
    )


async def claim_send(tx: WriteTx, settlement: SolanaSettlement, *, quiet: timedelta, now: datetime) -> bool:
    """Whether the caller is the one to send the message again: nobody has for `quiet`."""
    claimed = await tx.execute(
        """
        UPDATE payments.x402_solana_settlements SET sends = sends + 1, sent_at = %(now)s
        WHERE network = %(network)s AND message_hash = %(message_hash)s AND status = 'signed'
          AND sent_at <= %(before)s
        """,
        {
            "network": settlement.network,
            "message_hash": settlement.message_hash,
            "now": now,
            "before": now - quiet,
        },
    )
    return claimed == 1


async def end(tx: WriteTx, settlement: SolanaSettlement, end: End, *, now: datetime) -> SolanaSettlement:
    """Enter what became of it, unless somebody has; the row as it is then."""
    await tx.execute(
        """
        UPDATE payments.x402_solana_settlements
        SET status = %(status)s, landed_slot = %(landed_slot)s, fee_lamports = %(fee_lamports)s,
            amount_moved = %(amount_moved)s, reason = %(reason)s, ended_at = %(now)s
        WHERE network = %(network)s AND message_hash = %(message_hash)s AND status = 'signed'
        """,
        {
            "network": settlement.network,
            "message_hash": settlement.message_hash,
            "status": end.status,
            "landed_slot": end.landed_slot,
            "fee_lamports": end.fee_lamports,
            "amount_moved": None if end.amount_moved is None else Decimal(end.amount_moved),
            "reason": None if end.reason is None else end.reason[:REASON_CHARS_MAX],
            "now": now,
        },
    )
    ended = await find(tx, settlement.network, settlement.message_hash)
    assert ended is not None
    return ended
