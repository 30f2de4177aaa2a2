"""What the official SDK does alone at a seller's, row by row; beside it, the same SDK with our ledger.

Each is a loss that Tollbook exists to prevent. Where the SDK mends one, its test here fails: then the table
in docs/losses.md is to be written anew.
"""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from eth_account.signers.local import LocalAccount
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.schemas import PaymentRequirements

from clients.pay import paying_client, sign
from fixtures.bare_sdk import PRICE, BareFacilitator, BareShop, open_bare_shop
from fixtures.facilitator import DEAD
from tollbook.books.payments.sdk_client import LedgeredFacilitatorClient
from tollbook.core.local_chain import LocalChain


@pytest.fixture
async def bare(
    chain: LocalChain, token: str, operator: LocalAccount, seller: LocalAccount
) -> AsyncIterator[BareShop]:
    async with open_bare_shop(BareFacilitator(chain, operator), token, seller.address) as shop:
        yield shop


@pytest.fixture
async def ledgered(
    token: str, seller: LocalAccount, database_url: str, facilitator_url: str
) -> AsyncIterator[BareShop]:
    client = LedgeredFacilitatorClient(database_url, facilitator_url)
    async with open_bare_shop(client, token, seller.address) as shop:
        yield shop
    await client.aclose()


def count_sent(chain: LocalChain, operator: LocalAccount) -> int:
    return int(chain.call("eth_getTransactionCount", operator.address, "latest"), 16)


async def test_row_a_the_bare_sdk_runs_the_handler_for_every_copy_and_sends_every_copy(
    bare: BareShop, chain: LocalChain, payer: LocalAccount, operator: LocalAccount
) -> None:
    header = await bare.sign("/rain", payer)
    answers = await asyncio.gather(*(bare.ask("/rain", header) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 402, 402, 402]
    assert bare.runs == ["rain"] * 4
    assert count_sent(chain, operator) > 1


async def test_row_a_with_our_ledger_the_sdks_middleware_serves_one_copy_and_sends_one(
    ledgered: BareShop, chain: LocalChain, payer: LocalAccount, operator: LocalAccount
) -> None:
    header = await ledgered.sign("/rain", payer)
    answers = await asyncio.gather(*(ledgered.ask("/rain", header) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [402] * 9
    assert ledgered.runs == ["rain"]
    assert count_sent(chain, operator) == 1


async def test_row_b_the_bare_sdk_sends_again_what_is_settled(
    bare: BareShop, chain: LocalChain, payer: LocalAccount, operator: LocalAccount
) -> None:
    header = await bare.sign("/upfront", payer)
    answers = [await bare.ask("/upfront", header) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 402, 402]
    assert count_sent(chain, operator) == 3


async def test_row_h_the_bare_sdk_asks_who_has_paid_to_pay_again(
    bare: BareShop, chain: LocalChain, payer: LocalAccount, seller: LocalAccount
) -> None:
    bare.facilitator.lose = 1
    answer = await bare.ask("/rain", await bare.sign("/rain", payer))
    assert answer.status_code == 402
    assert decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"]).transaction == ""
    assert chain.read_balance(seller.address) == PRICE


async def test_row_i_the_bare_sdk_tells_a_payer_of_the_sellers_database_instead_of_his_goods(
    bare: BareShop, chain: LocalChain, payer: LocalAccount, seller: LocalAccount
) -> None:
    def record(_: object) -> None:
        raise RuntimeError("the database at 10.0.0.7 is down")

    bare.server.on_after_settle(record)
    answer = await bare.ask("/rain", await bare.sign("/rain", payer))
    assert answer.status_code == 402
    assert "10.0.0.7" in str(decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"]))
    assert chain.read_balance(seller.address) == PRICE


async def test_row_j_the_bare_sdk_calls_a_facilitator_that_is_down_an_unpaid_request(
    bare: BareShop, payer: LocalAccount, token: str, seller: LocalAccount
) -> None:
    header = await bare.sign("/rain", payer)
    dead = HTTPFacilitatorClient(FacilitatorConfig(url=DEAD))
    dead.get_supported = bare.facilitator.get_supported
    async with open_bare_shop(dead, token, seller.address) as shop:
        assert (await shop.ask("/rain", header)).status_code == 402
    await dead.aclose()


async def test_row_k_with_the_bare_sdk_a_payer_who_lost_his_answer_pays_twice(
    bare: BareShop, chain: LocalChain, payer: LocalAccount, seller: LocalAccount
) -> None:
    header = await bare.sign("/rain", payer)
    assert (await bare.ask("/rain", header)).status_code == 200  # and it is lost on its way
    assert (await bare.ask("/rain", header)).status_code == 402
    async with paying_client(payer, bare.token, base_url=bare.url) as client:
        assert (await client.get("/rain")).status_code == 200
    assert chain.read_balance(seller.address) == 2 * PRICE


async def test_row_l_the_bare_sdk_holds_a_stream_back_until_it_ends(
    bare: BareShop, payer: LocalAccount
) -> None:
    header = await bare.sign("/stream", payer)
    asked = asyncio.create_task(bare.ask("/stream", header))
    done, _ = await asyncio.wait([asked], timeout=0.5)
    assert not done
    assert (await asyncio.gather(asked, return_exceptions=True))[0] is not None


# The facilitator


async def test_row_c_the_bare_sdk_calls_a_settled_payment_failed_when_asked_again(
    chain: LocalChain, operator: LocalAccount, payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    facilitator, payload = BareFacilitator(chain, operator), await sign(payer, requirements)
    first = await facilitator.settle(payload, requirements)
    again = await facilitator.settle(payload, requirements)
    assert (first.success, again.success, again.error_reason) == (True, False, "transaction_failed")
    assert again.transaction not in ("", first.transaction)


async def test_row_d_one_failed_send_stalls_the_bare_sdk_until_its_restart(
    chain: LocalChain, payer: LocalAccount, seller: LocalAccount, requirements: PaymentRequirements
) -> None:
    poor = chain.make_account()
    facilitator = BareFacilitator(chain, poor, receipt_seconds_max=1)
    assert not (await facilitator.settle(await sign(payer, requirements), requirements)).success
    chain.set_gas_money(poor.address)
    funded = await facilitator.settle(await sign(payer, requirements), requirements)
    assert funded.error_reason == "settlement_pending"
    assert chain.read_balance(seller.address) == 0


async def test_row_e_two_workers_of_the_bare_sdk_with_one_key_refuse_a_valid_payment(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    requirements: PaymentRequirements,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reserve, both = FacilitatorWeb3Signer._reserve_nonce, threading.Barrier(2)

    def reserve_at_once(signer: FacilitatorWeb3Signer) -> int:
        """Each looks its nonce up, then sends."""
        nonce = reserve(signer)
        both.wait(60)
        return nonce

    monkeypatch.setattr(FacilitatorWeb3Signer, "_reserve_nonce", reserve_at_once)
    workers = [BareFacilitator(chain, operator, receipt_seconds_max=1) for _ in range(2)]
    payloads = [await sign(payer, requirements) for _ in workers]
    chain.call("evm_setAutomine", False)
    try:
        await asyncio.gather(
            *(each.settle(payload, requirements) for each, payload in zip(workers, payloads, strict=True))
        )
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    assert count_sent(chain, operator) == 1


async def test_row_g_the_bare_sdk_forgets_with_its_process_that_a_payment_is_on_its_way(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    requirements: PaymentRequirements,
) -> None:
    payload = await sign(payer, requirements)
    chain.call("evm_setAutomine", False)
    try:
        sent = await BareFacilitator(chain, operator, receipt_seconds_max=1).settle(payload, requirements)
    finally:
        chain.call("evm_setAutomine", True)
        chain.call("evm_mine")
    assert sent.error_reason == "settlement_pending"
    told = await BareFacilitator(chain, operator).settle(payload, requirements)
    assert (told.success, told.error_reason) == (False, "transaction_failed")
    assert told.transaction != sent.transaction
    assert chain.read_balance(seller.address) == PRICE
