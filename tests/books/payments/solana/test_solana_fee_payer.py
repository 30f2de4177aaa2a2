"""What a Solana fee payer pays for, and what it refuses: on the real runtime and real PostgreSQL."""

import base64
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.null_signer import NullSigner
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from x402.mechanisms.svm.constants import (
    COMPUTE_BUDGET_PROGRAM_ADDRESS,
    ERR_COMPUTE_PRICE_TOO_HIGH,
    ERR_FEE_PAYER_MISSING,
    ERR_FEE_PAYER_NOT_MANAGED,
    ERR_FEE_PAYER_TRANSFERRING,
    ERR_MINT_MISMATCH,
    ERR_RECIPIENT_MISMATCH,
    ERR_SIMULATION_FAILED,
    ERR_TRANSACTION_DECODE_FAILED,
    LIGHTHOUSE_PROGRAM_ADDRESS,
    TOKEN_2022_PROGRAM_ADDRESS,
)
from x402.schemas import PaymentPayload, SettleResponse

from fixtures.solana import PURSE
from fixtures.solana_desk import AMOUNT, Desk
from fixtures.solana_rpc import GENESIS_HASH
from tollbook.books.payments.facilitator.faults import (
    ERR_INVALID_NETWORK,
    ERR_INVALID_REQUIREMENTS,
    ERR_RECIPIENT_NOT_SERVED,
)
from tollbook.books.payments.facilitator.in_process import (
    FacilitatorUnreachable,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.solana import facilitator as facilitator_solana
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.facilitator import SolanaFacilitator
from tollbook.core.operator_keys import OperatorKeyUnusable, read_keypair

# The SDK asks nodes through classes that their library means to retire.
pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


@pytest.fixture
async def facilitator(desk: Desk) -> AsyncIterator[SolanaFacilitator]:
    async with desk.open() as facilitator:
        yield facilitator


async def test_an_empty_fee_payer_is_said_at_once_and_heals_when_it_is_funded(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    desk.chain.fund(desk.operator.pubkey(), 0)
    payment = await desk.sign()
    for ask in (facilitator.verify, facilitator.settle):
        with pytest.raises(OperatorOutOfGas, match=str(desk.operator.pubkey())):
            await ask(payment, desk.requirements())
    assert desk.rows() == []
    desk.chain.fund(desk.operator.pubkey(), 10**9)
    assert (await facilitator.settle(payment, desk.requirements())).success


async def test_a_payer_without_the_money_is_refused_before_anything_is_signed(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.drain()
    told = await facilitator.verify(payment, desk.requirements())
    assert told.invalid_reason == ERR_SIMULATION_FAILED
    answer = await facilitator.settle(payment, desk.requirements())
    assert (answer.success, answer.error_reason, answer.transaction) == (False, ERR_SIMULATION_FAILED, "")
    assert desk.rows() == []


async def test_what_verify_sends_to_a_node_cannot_land(desk: Desk, facilitator: SolanaFacilitator) -> None:
    """The bare SDK hands the node a transaction with every signature on it."""
    shown: list[VersionedTransaction] = []
    answer = desk.chain.answer

    def overhear(method: str, params: list[Any]) -> Any:
        if method == "simulateTransaction":
            shown.append(VersionedTransaction.from_bytes(base64.b64decode(params[0])))
        return answer(method, params)

    desk.chain.answer = overhear  # pyright: ignore[reportAttributeAccessIssue]
    try:
        assert (await facilitator.verify(await desk.sign(), desk.requirements())).is_valid
    finally:
        desk.chain.answer = answer  # pyright: ignore[reportAttributeAccessIssue]
    assert [one.signatures[0] for one in shown] == [Signature.default()]


async def test_a_token_that_keeps_a_part_of_the_transfer_has_not_paid_the_price(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    mint = str(Pubkey.new_unique())
    desk.chain.make_mint_with_fee(mint, basis_points=100)
    for owner, amount in ((desk.payer, PURSE), (desk.seller, 0)):
        desk.chain.give(owner.pubkey(), mint, amount, TOKEN_2022_PROGRAM_ADDRESS)
    requirements = desk.requirements(asset=mint)
    payment = await desk.sign(requirements)
    assert (await facilitator.verify(payment, requirements)).is_valid
    for _ in range(2):
        with pytest.raises(SettlementUnknown, match=f"got {AMOUNT * 99 // 100} of {AMOUNT}") as caught:
            await facilitator.settle(payment, requirements)
        assert caught.value.error_reason == facilitator_solana.ERR_AMOUNT_DIFFERS
    assert [row[0] for row in desk.rows()] == ["differs"]


async def test_a_node_of_another_network_is_not_believed(desk: Desk) -> None:
    other = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
    requirements = desk.requirements()
    payment = await desk.sign(requirements)
    requirements = requirements.model_copy(update={"network": other})
    payment.accepted = requirements
    async with desk.open(urls={other: desk.chain.url}) as facilitator:
        with pytest.raises(FacilitatorUnreachable, match=GENESIS_HASH[:32]):
            await facilitator.verify(payment, requirements)


async def test_a_payment_for_other_terms_is_refused_by_name(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    asked = desk.requirements()
    stranger = str(Keypair().pubkey())
    payment = await desk.sign(asked)
    for changes, reason in (
        ({"amount": str(AMOUNT + 1)}, "invalid_exact_svm_payload_amount_insufficient"),
        ({"amount": str(AMOUNT - 1)}, solana_payment.ERR_AMOUNT_MISMATCH),
        ({"asset": stranger}, ERR_MINT_MISMATCH),
        ({"pay_to": stranger}, ERR_RECIPIENT_MISMATCH),
        ({"pay_to": "0x" + "1" * 40}, ERR_INVALID_REQUIREMENTS),
        ({"amount": "-1"}, ERR_INVALID_REQUIREMENTS),
        ({"extra": {}}, ERR_FEE_PAYER_MISSING),
        ({"extra": {"feePayer": stranger}}, ERR_FEE_PAYER_TRANSFERRING),
        ({"network": "solana:elsewhere"}, ERR_INVALID_NETWORK),
    ):
        told = await facilitator.verify(payment, asked.model_copy(update=changes))
        assert (told.is_valid, told.invalid_reason) == (False, reason), changes
        answer = await facilitator.settle(payment, asked.model_copy(update=changes))
        assert (answer.success, answer.error_reason, answer.transaction) == (False, reason, "")
    assert desk.rows() == []


async def test_another_facilitators_fee_payer_is_not_ours(desk: Desk, facilitator: SolanaFacilitator) -> None:
    requirements = desk.requirements(extra={"feePayer": str(Keypair().pubkey())})
    told = await facilitator.verify(await desk.sign(requirements), requirements)
    assert told.invalid_reason == ERR_FEE_PAYER_NOT_MANAGED


async def test_fees_are_paid_for_the_named_recipients_alone(desk: Desk) -> None:
    payment = await desk.sign()
    for recipient, reason in ((desk.seller, None), (desk.payer, ERR_RECIPIENT_NOT_SERVED)):
        async with desk.open(recipients=[str(recipient.pubkey())]) as facilitator:
            assert (await facilitator.verify(payment, desk.requirements())).invalid_reason == reason


def rebuild(
    desk: Desk,
    payment: PaymentPayload,
    change: Callable[[list[Instruction]], None],
    *signers: Keypair,
) -> PaymentPayload:
    """The payment with its instructions changed, signed by its payer (and `signers`) as it is then."""
    old = VersionedTransaction.from_bytes(base64.b64decode(payment.payload["transaction"])).message
    assert isinstance(old, MessageV0)
    keys = old.account_keys
    calls = [
        Instruction(
            keys[call.program_id_index],
            call.data,
            [AccountMeta(keys[i], old.is_signer(i), old.is_maybe_writable(i)) for i in call.accounts],
        )
        for call in old.instructions
    ]
    change(calls)
    message = MessageV0.try_compile(desk.operator.pubkey(), calls, [], old.recent_blockhash)
    fee_payer = NullSigner(desk.operator.pubkey())
    changed = VersionedTransaction(message, [fee_payer, desk.payer, *signers])
    text = base64.b64encode(bytes(changed)).decode()
    return payment.model_copy(update={"payload": {"transaction": text}})


def memo_of_the_fee_payer(desk: Desk) -> Callable[[list[Instruction]], None]:
    """An instruction in which the fee payer takes part: Lighthouse can make it pay for memory."""
    account = AccountMeta(desk.operator.pubkey(), is_signer=True, is_writable=True)
    program = Pubkey.from_string(LIGHTHOUSE_PROGRAM_ADDRESS)
    return lambda calls: calls.append(Instruction(program, b"\0", [account]))


def raise_price(calls: list[Instruction]) -> None:
    budget = Pubkey.from_string(COMPUTE_BUDGET_PROGRAM_ADDRESS)
    calls[0] = Instruction(budget, bytes([2]) + (1_400_000).to_bytes(4, "little"), [])
    calls[1] = Instruction(budget, bytes([3]) + (5_000_000).to_bytes(8, "little"), [])


async def test_a_fee_payer_pays_for_nothing_but_the_transfer(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    """The bare SDK signs each of these: the first takes rent, the second 0.007 SOL a payment."""
    payment = await desk.sign()
    for change, reason in (
        (memo_of_the_fee_payer(desk), ERR_FEE_PAYER_TRANSFERRING),
        (raise_price, ERR_COMPUTE_PRICE_TOO_HIGH),
    ):
        told = await facilitator.verify(rebuild(desk, payment, change), desk.requirements())
        assert told.invalid_reason == reason


async def test_a_third_signature_is_not_paid_for(desk: Desk, facilitator: SolanaFacilitator) -> None:
    third = Keypair()
    account = AccountMeta(third.pubkey(), is_signer=True, is_writable=False)
    payment = await desk.sign()

    def add_signer(calls: list[Instruction]) -> None:
        calls[3] = Instruction(calls[3].program_id, calls[3].data, [account])

    told = await facilitator.verify(rebuild(desk, payment, add_signer, third), desk.requirements())
    assert told.invalid_reason == solana_payment.ERR_INVALID_SIGNATURE


async def test_what_the_payer_did_not_sign_is_refused(desk: Desk, facilitator: SolanaFacilitator) -> None:
    payment = await desk.sign()
    signed = VersionedTransaction.from_bytes(base64.b64decode(payment.payload["transaction"]))
    stranger = Keypair().sign_message(to_bytes_versioned(signed.message))
    for signature in (Signature.default(), stranger):
        forged = VersionedTransaction.populate(signed.message, [Signature.default(), signature])
        text = base64.b64encode(bytes(forged)).decode()
        told = await facilitator.verify(
            payment.model_copy(update={"payload": {"transaction": text}}), desk.requirements()
        )
        assert told.invalid_reason == solana_payment.ERR_INVALID_SIGNATURE


@pytest.mark.parametrize(
    "transaction", [None, 7, "", "?", "AAAA", "A" * 10_000, base64.b64encode(bytes(200)).decode()]
)
async def test_nonsense_is_refused_and_asks_nobody(
    desk: Desk, facilitator: SolanaFacilitator, transaction: Any
) -> None:
    requirements = desk.requirements()
    payment = PaymentPayload(x402_version=2, accepted=requirements, payload={"transaction": transaction})
    desk.chain.asked.clear()
    told = await facilitator.verify(payment, requirements)
    assert told.invalid_reason == ERR_TRANSACTION_DECODE_FAILED
    assert desk.chain.asked == []


async def test_one_message_is_one_payment_whatever_stands_in_the_fee_payers_place(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    signed = VersionedTransaction.from_bytes(base64.b64decode(payment.payload["transaction"]))
    noise = Keypair().sign_message(b"noise")
    twin = VersionedTransaction.populate(signed.message, [noise, signed.signatures[1]])
    text = base64.b64encode(bytes(twin)).decode()
    answers = [
        await facilitator.settle(each, desk.requirements())
        for each in (payment, payment.model_copy(update={"payload": {"transaction": text}}))
    ]
    assert answers[0].success
    assert answers[0] == answers[1]
    assert len(desk.chain.sent) == 1


@pytest.mark.parametrize("text", ["", "nonsense", "[1,2,3]", "[]", "0" * 88, "1" * 64, "{", "[999]"])
def test_an_unusable_key_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(OperatorKeyUnusable) as caught:
        read_keypair(text)
    assert not text or text not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_no_secret_is_logged(
    desk: Desk, facilitator: SolanaFacilitator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers.add("sendTransaction")
    answer: SettleResponse = await facilitator.settle(payment, desk.requirements())
    assert answer.success
    signed = VersionedTransaction.from_bytes(base64.b64decode(payment.payload["transaction"]))
    for secret in (payment.payload["transaction"], str(signed.signatures[1]), str(desk.operator)):
        assert secret not in caplog.text
