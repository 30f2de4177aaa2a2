"""Voucher requests on payment channels: Tollbook's paywall on PostgreSQL against the bare SDK in memory.

Both serve the same FastAPI app in this process, over ASGI. Vouchers are signed beforehand, so that the
seller's side is what is measured: the SDK keeps all in memory and forgets it; Tollbook has charged and booked
on disk before the answer leaves, and has kept it before its last byte does.
"""
# The tests' clients, which it shares, are not typed strictly.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402Client
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme as BatchClient
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.storage import (
    BatchSettlementClientContext,
)
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentRequired

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from clients.bare_sdk import (
    PRICE,
    BareFacilitator,
    make_batch_scheme,
    make_option,
    sell_with_bare_sdk,
    shop_at,
)
from fixtures.schemes import ADDRESSES, ARTIFACTS, selling
from tollbook import embedded
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.core.local_chain import NETWORK, TOKEN_ADDRESS, LocalChain
from tollbook.migrate import Folder, apply

SOURCE = Path(__file__).parents[1] / "src" / "tollbook"
ROUNDS = 3
REQUESTS = {1: 60, 16: 12}  # a round and channel, by channels at once
DEPOSITED = 1_000  # prices
SUBJECTS = ("bare SDK", "Tollbook")
GOALS = {1: 1.0, 16: 1.5}
BOOKS = {"core": "core", "stores": "core/stores", "payments": "books/payments"}
OK = 200


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/tick")
    async def tick() -> str:  # pyright: ignore[reportUnusedFunction]
        return "tick"

    return app


@asynccontextmanager
async def open_shops(chain: LocalChain, seller: LocalAccount, url: str) -> AsyncGenerator[dict[str, Any]]:
    """The same app sold by both."""
    option = make_option("batch-settlement", seller)
    routes = {"GET /tick": option}
    theirs, ours = [chain.make_account(wei=10**20) for _ in range(2)]
    bare = sell_with_bare_sdk(make_app(), BareFacilitator(chain, theirs), routes, make_batch_scheme(seller))
    facilitator = InProcessFacilitator({NETWORK: chain.url}, "0x" + ours.key.hex(), url)
    async with selling(make_app(), seller, facilitator, url, scheme="batch-settlement") as paywall:
        yield dict(zip(SUBJECTS, (bare, paywall), strict=True))
    await facilitator.aclose()


class Known:
    """What a buyer knows of his channels: the SDK's ClientChannelStorage."""

    def __init__(self) -> None:
        self.channels: dict[str, BatchSettlementClientContext] = {}

    def get(self, key: str) -> BatchSettlementClientContext | None:
        return self.channels.get(key)

    def set(self, key: str, context: BatchSettlementClientContext) -> None:
        self.channels[key] = context

    def delete(self, key: str) -> None:
        del self.channels[key]


class Buyer:
    """One channel at one shop, opened by the official client, which then signs ahead."""

    def __init__(self, shop: Any, account: LocalAccount) -> None:
        self._shop = shop
        self._known = Known()
        options = BatchSettlementEvmSchemeOptions(
            storage=self._known, deposit_strategy=lambda _: str(DEPOSITED * PRICE)
        )
        self._client = x402Client().register(NETWORK, BatchClient(EthAccountSigner(account), options))
        self._client.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": TOKEN_ADDRESS}]})

    async def open(self) -> None:
        async with shop_at(self._shop, self._client) as client:
            answer = await client.get("/tick")
            assert answer.status_code == OK, answer.text

    async def sign(self, times: int) -> list[str]:
        """So many PAYMENT-SIGNATUREs, as if each request before the next had been answered."""
        async with visit(self._shop) as client:
            asked = (await client.get("/tick")).headers["PAYMENT-REQUIRED"]
        required = decode_payment_required_header(asked)
        assert isinstance(required, PaymentRequired)
        [channel] = self._known.channels.values()
        signed: list[str] = []
        for _ in range(times):
            signed.append(
                encode_payment_signature_header(await self._client.create_payment_payload(required))
            )
            channel.charged_cumulative_amount = str(int(channel.charged_cumulative_amount or 0) + PRICE)
        return signed

    async def spend(self, signed: Sequence[str]) -> None:
        async with visit(self._shop) as client:
            for header in signed:
                answer = await client.get("/tick", headers={"PAYMENT-SIGNATURE": header})
                assert answer.status_code == OK, (answer.status_code, answer.text, answer.headers)


@asynccontextmanager
async def visit(shop: Any) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(shop)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as client:
        yield client


async def measure(buyers: Sequence[Buyer]) -> float:
    """Requests a second, all buyers at once, each of them one after another."""
    times = REQUESTS[len(buyers)]
    signed = [await buyer.sign(times) for buyer in buyers]
    begun = time.perf_counter()
    await asyncio.gather(*(buyer.spend(some) for buyer, some in zip(buyers, signed, strict=True)))
    return len(buyers) * times / (time.perf_counter() - begun)


async def compare(chain: LocalChain, url: str) -> None:
    """Print the figures, the subjects by turns."""
    async with open_shops(chain, chain.make_account(), url) as shops:
        for channels in REQUESTS:
            buyers = {
                subject: [Buyer(shop, chain.make_account(amount=10**9)) for _ in range(channels)]
                for subject, shop in shops.items()
            }
            for group in buyers.values():
                for buyer in group:
                    await buyer.open()
            rates = [[await measure(buyers[subject]) for subject in SUBJECTS] for _ in range(ROUNDS)]
            bare, ours = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(mine / theirs for theirs, mine in rates)
            print(f"voucher requests a second, {channels} channels: SDK {bare:.0f}, Tollbook {ours:.0f}")
            print(json.dumps({"tollbook_to_sdk": round(ratio, 2), "goal": GOALS[channels]}), flush=True)


def main() -> None:
    """Print the figures."""
    with LocalChain.start() as chain, embedded.throwaway() as server:
        apply(
            server.url(),
            [Folder(name, SOURCE / path / "migrations") for name, path in BOOKS.items()],
            backup=False,
        )
        chain.ensure_token()
        for contract, address in ADDRESSES.items():
            artifact = json.loads((ARTIFACTS / f"{contract}.json").read_text())
            chain.call("anvil_setCode", address, artifact["bytecode_runtime"])
        asyncio.run(compare(chain, server.url()))


if __name__ == "__main__":
    main()
