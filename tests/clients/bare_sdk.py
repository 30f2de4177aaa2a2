"""The official SDK alone, in one process: its facilitator, its paid FastAPI app, its paying httpx client."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402Client, x402ResourceServer
from x402.facilitator import x402FacilitatorSync
from x402.http.clients.httpx import x402AsyncTransport
from x402.http.middleware.fastapi import payment_middleware
from x402.http.types import PaymentOption, RouteConfig
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme as BatchClient
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.storage import ClientChannelStorage
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.server.scheme import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.batch_settlement.server.storage import ChannelStorage
from x402.mechanisms.evm.exact.client import ExactEvmScheme as ExactClient
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme as ExactFacilitator
from x402.mechanisms.evm.exact.server import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC, FacilitatorWeb3Signer
from x402.mechanisms.evm.upto.client import UptoEvmScheme as UptoClient
from x402.mechanisms.evm.upto.facilitator import UptoEvmScheme as UptoFacilitator
from x402.mechanisms.evm.upto.server import UptoEvmScheme
from x402.schemas import (
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)

from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, TOKEN_NAME, TOKEN_VERSION, LocalChain

PRICE = 1_000  # minor units: a tenth of a cent, or the most of it


class BareFacilitator:
    """The SDK's facilitator with all EVM schemes, as a client of itself that remembers its calls.

    It is a Facilitator as Tollbook asks one, too.
    """

    def __init__(self, chain: LocalChain, operator: LocalAccount) -> None:
        self.signer = signer = FacilitatorWeb3Signer("0x" + operator.key.hex(), chain.url)
        self._facilitator = x402FacilitatorSync()
        for scheme in (
            ExactFacilitator(signer),
            UptoFacilitator(signer),
            BatchSettlementEvmFacilitator(signer, LocalAuthorizerSigner(operator)),
        ):
            self._facilitator.register([NETWORK], scheme)
        self.calls: list[str] = []

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        self.calls.append("verify")
        return await asyncio.to_thread(self._facilitator.verify, payload, requirements)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        self.calls.append("settle")
        return await asyncio.to_thread(self._facilitator.settle, payload, requirements)

    def get_supported(self) -> SupportedResponse:
        return self._facilitator.get_supported()

    async def supported(self) -> SupportedResponse:
        return self.get_supported()

    async def aclose(self) -> None:
        pass


def make_option(scheme: str, seller: LocalAccount, amount: int = PRICE, **extra: Any) -> PaymentOption:
    """One way to pay on the local chain, in minor units of the test token."""
    domain = {"name": TOKEN_NAME, "version": TOKEN_VERSION}
    return PaymentOption(
        scheme=scheme,
        pay_to=seller.address,
        price={"amount": str(amount), "asset": TOKEN_ADDRESS, "extra": domain | extra},
        network=NETWORK,
        max_timeout_seconds=60,
    )


def make_batch_scheme(
    seller: LocalAccount, storage: ChannelStorage | None = None
) -> BatchSettlementEvmScheme:
    """The seller's side of batch-settlement: it authorizes its own claims and refunds."""
    config = BatchSettlementEvmSchemeServerConfig(
        storage=storage, receiver_authorizer_signer=LocalAuthorizerSigner(seller)
    )
    return BatchSettlementEvmScheme(seller.address, config)


def sell_with_bare_sdk(
    app: FastAPI,
    facilitator: BareFacilitator,
    routes: dict[str, PaymentOption],
    batch: BatchSettlementEvmScheme | None = None,
) -> FastAPI:
    """Put the SDK's middleware before an app's routes."""
    server = x402ResourceServer(facilitator)
    schemes: Sequence[Any] = (ExactEvmScheme(), UptoEvmScheme(), *([batch] if batch else []))
    for scheme in schemes:
        server.register(NETWORK, scheme)
    configured = {route: RouteConfig(accepts=option) for route, option in routes.items()}
    app.middleware("http")(payment_middleware(configured, server))
    return app


def make_buyer(
    account: LocalAccount, rpc_url: str | None = None, channels: ClientChannelStorage | None = None
) -> x402Client:
    """The SDK's client with one purse and every scheme of the local chain.

    With `rpc_url` it can look at the chain, without which it does not catch up with a channel's state.
    """
    signer = EthAccountSignerWithRPC(account, rpc_url) if rpc_url else EthAccountSigner(account)
    client = x402Client()
    options = BatchSettlementEvmSchemeOptions(storage=channels)
    for scheme in (ExactClient(signer), UptoClient(signer), BatchClient(signer, options)):
        client.register(NETWORK, scheme)
    client.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": TOKEN_ADDRESS}]})
    return client


def shop_at(app: Any, buyer: x402Client) -> httpx.AsyncClient:
    """A paying httpx client of an app in this process."""
    transport = x402AsyncTransport(buyer, httpx.ASGITransport(app))
    return httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=30)


async def sign_for(app: Any, path: str, buyer: x402Client) -> str:
    """A PAYMENT-SIGNATURE for what the app asks at a path."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        answer = await client.get(path)
    required = decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"])
    assert isinstance(required, PaymentRequired)
    return encode_payment_signature_header(await buyer.create_payment_payload(required))
