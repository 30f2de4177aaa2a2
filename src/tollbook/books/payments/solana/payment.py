"""A Solana payment by its own bytes: which message was signed, whose tokens it moves, and to whom."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from solders.message import MessageV0, VersionedMessage, to_bytes_versioned
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from x402.mechanisms.svm.constants import (
    ERR_COMPUTE_PRICE_TOO_HIGH,
    ERR_FEE_PAYER_MISSING,
    ERR_FEE_PAYER_TRANSFERRING,
    ERR_INVALID_PAYLOAD,
    ERR_TRANSACTION_DECODE_FAILED,
)
from x402.mechanisms.svm.exact.facilitator import ExactSvmScheme
from x402.mechanisms.svm.utils import extract_transaction_info
from x402.schemas import PaymentPayload, PaymentRequirements

from tollbook.books.payments.facilitator.faults import (
    ERR_INVALID_REQUIREMENTS,
    ERR_INVALID_VERSION,
    X402_VERSION,
    Fault,
)
from tollbook.core.chains import MalformedAddress, MalformedHash, normalize_address_on

TRANSACTION_BYTES_MAX = 1232  # what Solana carries in one packet
TRANSACTION_CHARS_MAX = -(-TRANSACTION_BYTES_MAX // 3) * 4
SIGNATURE_CHARS_MAX = 88
SIGNATURES = 2  # the facilitator's for the fee, the payer's for the tokens; each more costs the facilitator
# The payer chooses it, the facilitator pays it: as much as for both signatures, and no more.
PRIORITY_FEE_LAMPORTS_MAX = 10_000
MICROLAMPORTS = 1_000_000
U64_MAX = 2**64 - 1

ERR_AMOUNT_MISMATCH = "invalid_exact_svm_payload_amount_mismatch"
ERR_INVALID_SIGNATURE = "invalid_exact_svm_payload_signature"

_UINT = re.compile(r"[0-9]{1,20}")


class MalformedSolanaPayment(ValueError):
    """A payment without a Solana transaction in it; its text says in which way."""


@dataclass(frozen=True, slots=True)
class SolanaPayment:
    """One signed message. `message_hash` (SHA-256, hex) tells it from every other: it can land only once.

    Addresses are base 58, `amount` is in minor units, `destination` is the recipient's token account.
    """

    message_hash: str
    fee_payer: str
    payer: str
    asset: str
    destination: str
    amount: int
    transaction: VersionedTransaction


def read_payment(payload: PaymentPayload) -> SolanaPayment:
    """Return what the payer signed. Raises MalformedSolanaPayment."""
    transaction = _decode(payload.payload.get("transaction"))
    transfer = extract_transaction_info(transaction)
    if transfer is None:
        raise MalformedSolanaPayment("it transfers no token")
    return SolanaPayment(
        message_hash=hash_message(transaction.message),
        fee_payer=transfer.fee_payer,
        payer=transfer.payer,
        asset=transfer.mint,
        destination=transfer.destination_ata,
        amount=transfer.amount,
        transaction=transaction,
    )


def hash_message(message: VersionedMessage) -> str:
    """Return what tells a message from every other: the SHA-256 (hex) of the bytes that are signed."""
    return hashlib.sha256(to_bytes_versioned(message)).hexdigest()


def normalize_signature(text: str) -> str:
    """Return a transaction's id, the base 58 text of its first signature. Raises MalformedHash."""
    try:
        if len(text) > SIGNATURE_CHARS_MAX:
            raise ValueError
        return str(Signature.from_string(text))
    except ValueError:
        raise MalformedHash(
            f"{text[:90]!r} is no transaction of Solana's. Give its signature, base 58 of 64 bytes."
        ) from None


def find_fault(payload: PaymentPayload, requirements: PaymentRequirements) -> Fault | None:
    """Return why a payment cannot be for these requirements: x402 reason and sentence; None where it can.

    What it lets pass is one transfer of exactly the amount to the recipient's token account, signed by its
    owner, in which the fee payer has no part but the fee.
    """
    if payload.x402_version != X402_VERSION:
        return ERR_INVALID_VERSION, f"Only x402 version {X402_VERSION} is served."
    if not _are_terms(requirements):
        return ERR_INVALID_REQUIREMENTS, "asset and payTo are Solana addresses, amount is in minor units."
    fee_payer = (requirements.extra or {}).get("feePayer")
    if not isinstance(fee_payer, str):
        return ERR_FEE_PAYER_MISSING, "extra.feePayer names the account that pays the fee."
    try:
        payment = read_payment(payload)
        scheme = ExactSvmScheme(_Onlooker(fee_payer))
        told = scheme.verify(payload, requirements)  # pyright: ignore[reportUnknownMemberType]
    except MalformedSolanaPayment as error:
        return ERR_TRANSACTION_DECODE_FAILED, f"The payload's transaction is malformed: {error}."
    except (ValueError, IndexError) as error:  # what the SDK's reading stumbles over
        return ERR_INVALID_PAYLOAD, f"The payload's transaction is malformed ({type(error).__name__})."
    if not told.is_valid:
        reason = told.invalid_reason or ERR_INVALID_PAYLOAD
        return reason, f"The transaction is not one that pays for this: {reason}."
    return _find_abuse(payment, fee_payer, int(requirements.amount))


def _find_abuse(payment: SolanaPayment, fee_payer: str, amount: int) -> Fault | None:
    """What the SDK lets pass: another amount, or a fee payer made to pay for more than the transfer."""
    message = payment.transaction.message
    if payment.amount != amount:
        return ERR_AMOUNT_MISMATCH, f"The payment is of {payment.amount} minor units; asked are {amount}."
    if payment.fee_payer != fee_payer or any(0 in call.accounts for call in message.instructions):
        return ERR_FEE_PAYER_TRANSFERRING, "The fee payer comes first and takes part in no instruction."
    if _count_priority_fee(payment.transaction) > PRIORITY_FEE_LAMPORTS_MAX:
        return ERR_COMPUTE_PRICE_TOO_HIGH, (
            f"The priority fee is more than {PRIORITY_FEE_LAMPORTS_MAX} lamports. Sign with a lower one."
        )
    if message.header.num_required_signatures != SIGNATURES or not _is_signed(payment):
        return ERR_INVALID_SIGNATURE, "Signatures are the fee payer's and the token owner's, and no more."
    return None


def _is_signed(payment: SolanaPayment) -> bool:
    owner = str(payment.transaction.message.account_keys[1])
    return owner == payment.payer and payment.transaction.verify_with_results()[1]


def _count_priority_fee(transaction: VersionedTransaction) -> int:
    """Lamports: the units allowed times their price, from the two instructions that the SDK has looked at."""
    units, price = (call.data[1:] for call in transaction.message.instructions[:2])
    return -(-int.from_bytes(units[:4], "little") * int.from_bytes(price[:8], "little") // MICROLAMPORTS)


def _decode(text: object) -> VersionedTransaction:
    if not isinstance(text, str) or len(text) > TRANSACTION_CHARS_MAX:
        raise MalformedSolanaPayment(f"give a transaction of at most {TRANSACTION_BYTES_MAX} bytes in base64")
    try:
        transaction = VersionedTransaction.from_bytes(base64.b64decode(text, validate=True))
        transaction.sanitize()
    except (binascii.Error, ValueError, TypeError):
        raise MalformedSolanaPayment("it is no Solana transaction in base64") from None
    except Exception as error:  # the runtime's own error classes share no other base
        raise MalformedSolanaPayment(f"it is not well-formed ({type(error).__name__})") from None
    message = transaction.message
    if isinstance(message, MessageV0) and message.address_table_lookups:
        raise MalformedSolanaPayment("it takes accounts from look-up tables")
    return transaction


def _are_terms(requirements: PaymentRequirements) -> bool:
    try:
        for address in (requirements.asset, requirements.pay_to):
            normalize_address_on(requirements.network, address)
    except MalformedAddress:
        return False
    return _UINT.fullmatch(requirements.amount) is not None and 0 < int(requirements.amount) <= U64_MAX


class _Onlooker:
    """A signer for the SDK's checks of the bytes alone: it signs nothing and asks nobody."""

    def __init__(self, fee_payer: str) -> None:
        self._fee_payer = fee_payer

    def get_addresses(self) -> list[str]:
        return [self._fee_payer]

    def sign_transaction(self, tx_base64: str, fee_payer: str, network: str) -> str:
        return tx_base64

    def simulate_transaction(self, tx_base64: str, network: str) -> None: ...

    def send_transaction(self, tx_base64: str, network: str) -> str:
        raise NotImplementedError

    def confirm_transaction(self, signature: str, network: str) -> None:
        raise NotImplementedError
