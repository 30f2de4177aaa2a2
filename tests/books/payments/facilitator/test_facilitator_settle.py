"""Settling: one broadcast whoever asks how often, and what is not known is never called failed."""

import asyncio
import secrets
from dataclasses import replace

import psycopg
import pytest
from eth_account.signers.local import LocalAccount
from psycopg.conninfo import make_conninfo
from x402.schemas import PaymentRequirements, SettleResponse

from clients.pay import sign
from fixtures.authorizations import authorize
from fixtures.facilitator import (
    encode_settlement,
    key_of,
    see_pending,
    settle_behind,
    sign_with_nonce,
)
from fixtures.rpc_proxy import play_proxy
from tollbook.books.payments.facilitator.exact import Payment
from tollbook.books.payments.facilitator.in_process import (
    Facilitator,
    FacilitatorUnreachable,
    InProcessFacilitator,
    SettlementUnknown,
)
from tollbook.core.chains import ADDRESS_PADDING, read_receipt
from tollbook.core.local_chain import DEPLOYER, NETWORK, LocalChain

# What is not known


async def test_a_lost_answer_to_a_broadcast_does_not_lose_the_payment(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator(
            {NETWORK: proxy.url}, key_of(operator), database_url, receipt_seconds_max=2
        )
        proxy.lost_answers.add("eth_sendRawTransaction")
        settled = await facilitator.settle(await sign(payer, requirements), requirements)
        assert settled.success
        assert proxy.asked.count("eth_sendRawTransaction") == 1
        proxy.lost_answers.add("eth_getTransactionReceipt")
        payload = await sign(payer, requirements)
        with pytest.raises(SettlementUnknown) as unknown:
            await facilitator.settle(payload, requirements)
        assert chain.read_balance(seller.address) == 20_000
        assert chain.call("eth_getTransactionReceipt", unknown.value.transaction)["status"] == "0x1"
        proxy.lost_answers.clear()
        again = await facilitator.settle(payload, requirements)
        assert (again.success, again.transaction) == (True, unknown.value.transaction)
        assert chain.read_balance(seller.address) == 20_000
        await facilitator.aclose()


async def test_books_that_cannot_be_read_after_the_broadcast_do_not_say_that_nothing_was_sent(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    impatient = make_conninfo(database_url, options="-c lock_timeout=300")
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, key_of(operator), impatient, receipt_seconds_max=1
    )
    payload = await sign(payer, requirements)
    chain.call("evm_setAutomine", False)
    try:
        settling = asyncio.create_task(facilitator.settle(payload, requirements))
        await see_pending(chain)
        async with await psycopg.AsyncConnection.connect(database_url) as locked:
            await locked.execute("LOCK TABLE core.transactions")
            with pytest.raises(SettlementUnknown):
                await settling
            with pytest.raises(SettlementUnknown):
                await facilitator.settle(payload, requirements)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    await facilitator.aclose()


async def test_a_broadcast_with_an_unclear_answer_is_sent_again_by_itself(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator(
            {NETWORK: proxy.url}, key_of(operator), database_url, receipt_seconds_max=60
        )
        proxy.refusals["eth_sendRawTransaction"] = ["upstream request timeout"]
        first, second = [await sign(payer, requirements) for _ in range(2)]
        waiting = asyncio.create_task(facilitator.settle(first, requirements))
        # What may never have arrived is sent again, and keeps the next one waiting no longer than that.
        assert (await facilitator.settle(second, requirements)).success
        assert (await waiting).success
        assert chain.read_balance(seller.address) == 20_000
        await facilitator.aclose()


@pytest.mark.parametrize("answer", ["transaction underpriced", "intrinsic gas too low"])
async def test_a_broadcast_that_was_surely_refused_can_be_tried_again(
    database_url: str,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
    answer: str,
) -> None:
    async with play_proxy(chain.url) as proxy:
        facilitator = InProcessFacilitator({NETWORK: proxy.url}, key_of(operator), database_url)
        proxy.refusals["eth_sendRawTransaction"] = [answer] * 9
        payload = await sign(payer, requirements)
        with pytest.raises(FacilitatorUnreachable):
            await facilitator.settle(payload, requirements)
        proxy.refusals.clear()
        assert (await facilitator.settle(payload, requirements)).success
        assert chain.read_balance(seller.address) == 10_000
        await facilitator.aclose()


@pytest.mark.parametrize("receipt_seconds_max", [2.0])
async def test_a_pending_settlement_cannot_be_claimed_for_other_requirements(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    operator: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    chain.call("evm_setAutomine", False)
    try:
        with pytest.raises(SettlementUnknown):
            await in_process.settle(payload, requirements)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    dearer = requirements.model_copy(update={"amount": "99000000"})
    refused = await in_process.settle(payload, dearer)
    assert refused.error_reason == "invalid_exact_evm_payload_authorization_value_mismatch"
    thief = requirements.model_copy(update={"pay_to": operator.address})
    refused = await in_process.settle(payload, thief)
    assert refused.error_reason == "invalid_exact_evm_payload_recipient_mismatch"


async def test_a_payer_who_empties_the_purse_first_has_failed_to_pay(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    purse = chain.read_balance(payer.address)
    drain = "0xa9059cbb" + operator.address[2:].rjust(64, "0") + f"{purse:064x}"
    settling = in_process.settle(await sign(payer, requirements), requirements)
    outcome = await settle_behind(chain, settling, {"from": payer.address, "to": token, "data": drain})
    assert isinstance(outcome, SettleResponse)
    assert not outcome.success
    assert chain.call("eth_getTransactionReceipt", outcome.transaction)["status"] == "0x0"
    assert chain.read_balance(seller.address) == 0


async def test_a_payment_that_failed_may_be_tried_anew_and_pays_once(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    operator: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    purse = chain.read_balance(payer.address)
    drain = "0xa9059cbb" + operator.address[2:].rjust(64, "0") + f"{purse:064x}"
    payload = await sign(payer, requirements)
    settling = in_process.settle(payload, requirements)
    failed = await settle_behind(chain, settling, {"from": payer.address, "to": token, "data": drain})
    again = await in_process.settle(payload, requirements)
    assert again.error_reason == "invalid_exact_evm_insufficient_balance"
    chain.mint(payer.address, 50_000)
    answers = [await in_process.settle(payload, requirements) for _ in range(3)]
    assert all(answer.success for answer in answers)
    assert len({answer.transaction for answer in answers} | {failed.transaction}) == 2
    assert chain.read_balance(seller.address) == 10_000


async def test_a_payment_that_another_hand_settled_first_is_settled_by_that_hand(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    other = chain.make_account()
    call = {"from": other.address, "to": token, "data": encode_settlement(payload)}
    outcome = await settle_behind(chain, facilitator.settle(payload, requirements), call)
    assert outcome.success
    assert chain.call("eth_getTransactionByHash", outcome.transaction)["from"] == other.address.lower()
    assert await facilitator.settle(payload, requirements) == outcome
    assert chain.read_balance(seller.address) == 10_000


async def test_a_payment_that_was_settled_elsewhere_long_before_costs_no_gas(
    facilitator: Facilitator,
    chain: LocalChain,
    payer: LocalAccount,
    operator: LocalAccount,
    token: str,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    foreign = chain.send({"from": DEPLOYER, "to": token, "data": encode_settlement(payload)})
    settled = await facilitator.settle(payload, requirements)
    assert (settled.success, settled.transaction) == (True, foreign["transactionHash"])
    assert chain.call("eth_getTransactionCount", operator.address, "latest") == "0x0"


async def test_a_cancelled_payment_has_failed(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    promise = authorize(payer, requirements.pay_to)
    payload = sign_with_nonce(payer, requirements, promise.nonce)
    promise.cancel(chain)
    outcome = await in_process.settle(payload, requirements)
    assert (outcome.success, outcome.error_reason) == (False, "invalid_exact_evm_nonce_already_used")


async def test_of_two_payments_signed_with_one_nonce_only_the_one_that_moved_is_settled(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    other = chain.make_account()
    elsewhere = requirements.model_copy(update={"pay_to": other.address})
    dearer = requirements.model_copy(update={"amount": "99000000"})
    nonce = "0x" + secrets.token_hex(32)
    first, second, third = [
        sign_with_nonce(payer, wanted, nonce) for wanted in (requirements, elsewhere, dearer)
    ]
    assert (await in_process.settle(first, requirements)).success
    for payload, wanted in ((second, elsewhere), (third, dearer)):
        refused = await in_process.settle(payload, wanted)
        assert (refused.success, refused.error_reason) == (False, "invalid_exact_evm_nonce_already_used")
    assert await in_process.settle(first, requirements)
    assert chain.read_balance(seller.address) == 10_000
    assert chain.read_balance(other.address) == 0


async def test_a_token_that_takes_its_fee_first_does_not_make_a_payment_failed(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    settled = await in_process.settle(payload, requirements)
    receipt = read_receipt(chain.call("eth_getTransactionReceipt", settled.transaction))
    used, moved = receipt.logs
    collector = ADDRESS_PADDING + "fe" * 20
    fee = replace(moved, topics=(*moved.topics[:2], collector), data="0x" + "01".rjust(64, "0"))
    taxed = replace(receipt, logs=(used, fee, replace(moved, index=moved.index + 1)))
    exact = in_process._roads[NETWORK].exact  # pyright: ignore[reportPrivateUsage]  # no such token is here
    with pytest.raises(SettlementUnknown):
        exact.read_outcome(Payment.read(payload, requirements), taxed)
    assert not exact.read_outcome(
        Payment.read(payload, requirements), replace(taxed, logs=(used, fee))
    ).success


async def test_two_payments_with_one_nonce_at_once_move_money_once(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    other = chain.make_account()
    elsewhere = requirements.model_copy(update={"pay_to": other.address})
    nonce = "0x" + secrets.token_hex(32)
    wanted = (requirements, elsewhere)
    payloads = [sign_with_nonce(payer, one, nonce) for one in wanted]
    answers = await asyncio.gather(
        *(in_process.settle(payload, one) for payload, one in zip(payloads, wanted, strict=True))
    )
    assert sorted(answer.success for answer in answers) == [False, True]
    paid = [chain.read_balance(account.address) for account in (seller, other)]
    assert paid == [10_000 * answer.success for answer in answers]


async def test_a_settlement_is_answered_when_its_block_is_deep_enough(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, key_of(operator), database_url, confirmations={NETWORK: 3}
    )
    payload = await sign(payer, requirements)
    settling = asyncio.create_task(facilitator.settle(payload, requirements))
    await asyncio.sleep(1)
    assert not settling.done()
    chain.call("anvil_mine", hex(2))
    assert (await settling).success
    await facilitator.aclose()


async def test_a_key_that_somebody_else_sends_with_goes_on(
    in_process: InProcessFacilitator,
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    assert (await in_process.settle(await sign(payer, requirements), requirements)).success
    chain.call("anvil_impersonateAccount", operator.address)
    chain.send({"from": operator.address, "to": payer.address, "value": "0x1"})
    chain.call("anvil_stopImpersonatingAccount", operator.address)
    assert (await in_process.settle(await sign(payer, requirements), requirements)).success


async def test_several_keys_share_the_work(
    chain: LocalChain,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
) -> None:
    operators = [chain.make_account(wei=10**18) for _ in range(3)]
    facilitator = InProcessFacilitator(
        {NETWORK: chain.url}, [key_of(operator) for operator in operators], database_url
    )
    supported = await facilitator.supported()
    assert supported.signers == {"eip155:*": [operator.address for operator in operators]}
    for _ in range(4):
        payloads = [await sign(payer, requirements) for _ in range(4)]
        answers = await asyncio.gather(*(facilitator.settle(one, requirements) for one in payloads))
        assert all(answer.success for answer in answers)
    await facilitator.aclose()
    assert chain.read_balance(seller.address) == 16 * 10_000


# What cannot be reached
