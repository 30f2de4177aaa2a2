"""The ways, by row, in which the SDK's own facilitator loses money or truth: none of them here."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentPayload, PaymentRequirements

from clients.pay import sign
from fixtures.facilitator import key_of, settle_in_another_process
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import (
    Facilitator,
    FacilitatorUnreachable,
    InProcessFacilitator,
    OperatorOutOfGas,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.core.local_chain import NETWORK, LocalChain

COPIES = 10


def count_sent(chain: LocalChain, operator: LocalAccount) -> int:
    """How many transactions the operator has on the chain."""
    return int(chain.call("eth_getTransactionCount", operator.address, "latest"), 16)


async def test_row_a_ten_parallel_copies_of_a_payment_are_one_broadcast(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)

    async def verify_and_settle() -> tuple[bool, str]:
        await facilitator.verify(payload, requirements)
        answer = await facilitator.settle(payload, requirements)
        return answer.success, answer.transaction

    answers = set(await asyncio.gather(*(verify_and_settle() for _ in range(COPIES))))
    assert len(answers) == 1
    assert all(success for success, _ in answers)
    assert count_sent(chain, operator) == 1
    assert chain.read_balance(seller.address) == 10_000


async def test_row_b_a_payment_settled_before_the_handler_is_broadcast_once_in_sequence_too(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    answers = [await in_process.settle(payload, requirements) for _ in range(COPIES)]
    assert len({answer.transaction for answer in answers}) == 1
    assert all(answer.success for answer in answers)
    assert count_sent(chain, operator) == 1
    assert chain.read_balance(seller.address) == 10_000


async def test_row_c_settling_twice_answers_the_same_transaction(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    first = await facilitator.settle(payload, requirements)
    assert first.success
    head = chain.call("eth_blockNumber")
    verified = await facilitator.verify(payload, requirements)
    assert verified.invalid_reason == "invalid_exact_evm_nonce_already_used"
    assert await facilitator.settle(payload, requirements) == first
    assert chain.call("eth_blockNumber") == head  # no gas was spent on it
    assert chain.read_balance(seller.address) == 10_000


async def test_row_d_no_gas_money_is_said_at_once_and_heals_when_funded(
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    poor = chain.make_account()
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(poor), database_url)
    payloads = [await sign(payer, requirements) for _ in range(3)]
    async with serve(facilitator_app(facilitator)) as url:
        remote = RemoteFacilitator(url)
        with pytest.raises(OperatorOutOfGas, match=poor.address.lower()):
            await facilitator.settle(payloads[0], requirements)
        with pytest.raises(FacilitatorUnreachable):
            await remote.settle(payloads[0], requirements)
        chain.set_gas_money(poor.address)
        for payload in payloads:
            assert (await remote.settle(payload, requirements)).success
        await remote.aclose()
    await facilitator.aclose()
    assert chain.read_balance(seller.address) == 3 * 10_000


def test_row_e_processes_that_share_a_key_settle_every_payment_once(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    payloads = [asyncio.run(sign(payer, requirements)) for _ in range(12)]
    bodies = [payload.model_dump_json(by_alias=True) for payload in payloads]
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as processes:
        asked = [
            processes.submit(settle_in_another_process, chain.url, key_of(operator), database_url, bodies)
            for _ in range(3)
        ]
        first, *others = [one.result() for one in asked]
    assert all(success for success, _ in first)
    assert all(other == first for other in others)  # each process was told the same of every payment
    assert count_sent(chain, operator) == len(payloads)
    assert chain.read_balance(seller.address) == 10_000 * len(payloads)


async def settle_without_a_block(
    facilitator: Facilitator, chain: LocalChain, payload: PaymentPayload
) -> SettlementUnknown:
    """What is said of a payment for which no block came in time; a block comes afterwards."""
    chain.call("evm_setAutomine", False)
    try:
        with pytest.raises(SettlementUnknown) as unknown:
            await facilitator.settle(payload, payload.accepted)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    assert unknown.value.error_reason == "settlement_pending"
    return unknown.value


@pytest.mark.parametrize("receipt_seconds_max", [2.0])
async def test_row_f_a_block_that_came_late_is_found_when_asked_again(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    unknown = await settle_without_a_block(facilitator, chain, payload)
    settled = await facilitator.settle(payload, requirements)
    assert (settled.success, settled.transaction) == (True, unknown.transaction)
    assert chain.read_balance(seller.address) == 10_000


@pytest.mark.parametrize("receipt_seconds_max", [2.0])
async def test_row_g_a_block_that_came_late_is_found_after_a_restart_and_by_another_worker(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    unknown = await settle_without_a_block(in_process, chain, payload)
    await in_process.aclose()
    other = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), database_url)
    settled = await other.settle(payload, requirements)
    await other.aclose()
    assert (settled.success, settled.transaction) == (True, unknown.transaction)
    assert count_sent(chain, operator) == 1
    assert chain.read_balance(seller.address) == 10_000
