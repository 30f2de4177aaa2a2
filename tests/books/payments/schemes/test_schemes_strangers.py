"""A channel's payer alone is told what he signed last: his voucher may still buy something."""

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from x402.http.middleware.fastapi import set_settlement_overrides
from x402.http.utils import decode_payment_required_header, decode_payment_signature_header
from x402.http.utils import encode_payment_signature_header as encode

from clients.bare_sdk import PRICE, make_buyer, shop_at, sign_for
from fixtures.schemes import selling
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.core.local_chain import LocalChain


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/ticks")
    async def ticks(response: Response, used: str) -> str:
        set_settlement_overrides(response, {"amount": used})
        return "tick"

    return app


@pytest.mark.parametrize("signs", ["the payer", "a stranger"])
async def test_the_payer_of_a_channel_alone_is_told_the_last_voucher(
    signs: str,
    schemes_chain: LocalChain,
    in_process: InProcessFacilitator,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> None:
    assert schemes_chain
    buyer = make_buyer(payer)
    async with selling(make_app(), seller, in_process, database_url, scheme="batch-settlement") as paywall:
        async with shop_at(paywall, buyer) as client:
            assert (await client.get("/ticks", params={"used": "0"})).status_code == 200
            stale = decode_payment_signature_header(await sign_for(paywall, "/ticks", buyer))
            assert (await client.get("/ticks", params={"used": str(PRICE // 2)})).status_code == 200
        if signs == "a stranger":
            stale.payload["voucher"]["signature"] = "0x" + "11" * 64 + "1b"
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(paywall), base_url="http://shop"
        ) as client:
            answer = await client.get("/ticks", headers={"PAYMENT-SIGNATURE": encode(stale)})
    assert answer.status_code == 402
    [terms] = decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"]).accepts
    assert terms.extra["channelState"]["chargedCumulativeAmount"] == str(PRICE // 2)
    assert ("voucherState" in terms.extra) == (signs == "the payer")
