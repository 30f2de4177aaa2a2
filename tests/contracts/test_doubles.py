"""The doubles of the schemes' contracts do what the official SDK, and it alone, asks of them."""

import copy

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from web3.exceptions import ContractLogicError
from x402.http.middleware.fastapi import set_settlement_overrides
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.batch_settlement.server.channel_manager import BatchSettlementChannelManager
from x402.mechanisms.evm.batch_settlement.server.channel_manager_common import ChannelManagerConfig
from x402.mechanisms.evm.constants import X402_EXACT_PERMIT2_PROXY_ABI, X402_EXACT_PERMIT2_PROXY_ADDRESS
from x402.mechanisms.evm.exact.permit2_utils import _build_permit2_settle_args
from x402.mechanisms.evm.types import ExactPermit2Payload
from x402.schemas import PaymentPayload, PaymentRequired, SettleResponse

from clients.bare_sdk import (
    PRICE,
    BareFacilitator,
    make_batch_scheme,
    make_buyer,
    make_option,
    sell_with_bare_sdk,
    shop_at,
)
from clients.pay import require
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, TOKEN_NAME, TOKEN_VERSION, LocalChain


@pytest.fixture
def facilitator(schemes_chain: LocalChain, operator: LocalAccount) -> BareFacilitator:
    return BareFacilitator(schemes_chain, operator)


def read_settlement(response: httpx.Response) -> SettleResponse:
    return decode_payment_response_header(response.headers["PAYMENT-RESPONSE"])


async def test_an_exact_payment_by_permit2_moves_the_money(
    schemes_chain: LocalChain, facilitator: BareFacilitator, permit2_payer: LocalAccount, seller: LocalAccount
) -> None:
    app = FastAPI()

    @app.get("/weather")
    async def weather() -> str:
        return "dry"

    sell_with_bare_sdk(
        app, facilitator, {"GET /weather": make_option("exact", seller, assetTransferMethod="permit2")}
    )
    async with shop_at(app, make_buyer(permit2_payer)) as client:
        answer = await client.get("/weather")
    assert answer.status_code == 200
    assert read_settlement(answer).transaction.startswith("0x")
    assert schemes_chain.read_balance(seller.address) == PRICE


@pytest.mark.parametrize(
    ("used", "status", "moved"), [("250", 200, 250), ("50%", 200, 500), ("0", 200, 0), ("1001", 402, 0)]
)
async def test_an_upto_payment_moves_what_was_used(
    used: str,
    status: int,
    moved: int,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    permit2_payer: LocalAccount,
    seller: LocalAccount,
) -> None:
    app = FastAPI()

    @app.get("/tokens")
    async def tokens(response: Response) -> str:
        set_settlement_overrides(response, {"amount": used})
        return "words"

    sell_with_bare_sdk(app, facilitator, {"GET /tokens": make_option("upto", seller)})
    async with shop_at(app, make_buyer(permit2_payer)) as client:
        answer = await client.get("/tokens")
    assert answer.status_code == status
    assert schemes_chain.read_balance(seller.address) == moved


async def test_permit2_takes_a_signature_once_and_from_its_signer_alone(
    schemes_chain: LocalChain, facilitator: BareFacilitator, permit2_payer: LocalAccount, seller: LocalAccount
) -> None:
    permit = {"name": TOKEN_NAME, "version": TOKEN_VERSION, "assetTransferMethod": "permit2"}
    requirements = require(TOKEN_ADDRESS, seller.address, extra=permit)
    payment = await make_buyer(permit2_payer).create_payment_payload(PaymentRequired(accepts=[requirements]))
    assert isinstance(payment, PaymentPayload)

    def simulate(**changes: str) -> None:
        fields = copy.deepcopy(payment.payload)
        fields["permit2Authorization"] |= changes
        facilitator.signer.read_contract(
            X402_EXACT_PERMIT2_PROXY_ADDRESS,
            X402_EXACT_PERMIT2_PROXY_ABI,
            "settle",
            *_build_permit2_settle_args(ExactPermit2Payload.from_dict(fields)),
        )

    simulate()
    with pytest.raises(ContractLogicError, match="InvalidSigner"):
        simulate(nonce="1")
    with pytest.raises(ContractLogicError, match="SignatureExpired"):
        simulate(deadline="1")
    assert (await facilitator.settle(payment, requirements)).success
    with pytest.raises(ContractLogicError, match="InvalidNonce"):
        simulate()
    assert schemes_chain.read_balance(seller.address) == int(requirements.amount)


@pytest.mark.parametrize("method", ["eip3009", "permit2"])
async def test_a_channel_is_filled_drawn_on_claimed_paid_out_and_given_back(
    method: str,
    schemes_chain: LocalChain,
    facilitator: BareFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    request: pytest.FixtureRequest,
) -> None:
    if method == "permit2":
        request.getfixturevalue("permit2_payer")
    purse = schemes_chain.read_balance(payer.address)
    batch = make_batch_scheme(seller)
    app = FastAPI()

    @app.get("/ticks")
    async def ticks() -> str:
        return "tick"

    option = make_option("batch-settlement", seller, assetTransferMethod=method)
    sell_with_bare_sdk(app, facilitator, {"GET /ticks": option}, batch)
    buyer = make_buyer(payer)
    async with shop_at(app, buyer) as client:
        answers = [await client.get("/ticks") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert facilitator.calls == ["verify", "settle"]  # the deposit: a voucher asks nobody
        assert [read_settlement(answer).amount for answer in answers] == [str(10 * PRICE), "", ""]
        assert schemes_chain.read_balance(payer.address) == purse - 10 * PRICE

        manager = BatchSettlementChannelManager(
            ChannelManagerConfig(batch, facilitator, seller.address, TOKEN_ADDRESS, NETWORK)
        )
        await manager.claim_and_settle()
        assert schemes_chain.read_balance(seller.address) == 3 * PRICE

        await client.get("/ticks")
        await manager.refund()
    await manager.settle()
    assert schemes_chain.read_balance(seller.address) == 4 * PRICE
    assert schemes_chain.read_balance(payer.address) == purse - 4 * PRICE
