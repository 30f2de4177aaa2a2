"""`tollbook up --demo`: a local chain, a paid API, and an agent that buys from it every few seconds."""

import asyncio
import fcntl
import json
import os
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.http.clients.httpx import PaymentError
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact import register_exact_evm_client  # pyright: ignore[reportUnknownVariableType]
from x402.mechanisms.evm.signers import EthAccountSigner

from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.wire import REMAINING_HEADER, TOKEN_HEADER
from tollbook.core.errors import Refusal
from tollbook.core.local_chain import NETWORK, LocalChain
from tollbook.entrypoints.serving import Teller

FOLDER = "demo"
ACCOUNTS_FILE = "accounts.json"
CHAIN_FILE = "chain.json"
ROLES = ("operator", "seller", "buyer")
PURSE_MIN = 10_000_000  # minor units: ten test dollars
PURSE = 1_000_000_000
PRICE = "$0.01"
REQUESTS = 5
PATH = "/weather/{city}"
CITIES = ("lisbon", "oslo", "kyoto", "quito")
PAUSE_SECONDS = 3.0
ANSWER_SECONDS_MAX = 30.0
TOKEN_USE_SECONDS = 0.2
OK = 200


class DemoTaken(Refusal):
    """Another demonstration plays on this folder's chain."""

    reason = "demo-taken"

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"Another demonstration already runs on {folder}. Stop it, or choose another --data-dir."
        )


class DemoFolderUnusable(Refusal):
    """The demonstration's notes cannot be read."""

    reason = "demo-folder-unusable"


@dataclass(frozen=True, slots=True)
class Stage:
    """The demonstration's parts: the chain, and those who play on it."""

    chain: LocalChain
    token: str
    operator: LocalAccount
    seller: LocalAccount
    buyer: LocalAccount


@contextmanager
def open_stage(folder: Path | None) -> Generator[Stage]:
    """Yield the stage while its chain runs. In a folder its chain and accounts are found again next time.

    Raises LocalChainMissing without Node, LocalChainFailed, DemoTaken, DemoFolderUnusable.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollbook-demo-")))
        stack.enter_context(_hold(folder))
        accounts = _find_accounts(folder / ACCOUNTS_FILE)
        chain = stack.enter_context(LocalChain.start(folder / CHAIN_FILE))
        token = chain.ensure_token()
        chain.set_gas_money(accounts["operator"].address)
        for role in ("operator", "buyer"):  # the operator pays commands of settlement
            if chain.read_balance(accounts[role].address) < PURSE_MIN:
                chain.mint(accounts[role].address, PURSE)
        yield Stage(chain, token, **accounts)


@contextmanager
def _hold(folder: Path) -> Generator[None]:
    """Keep the folder for this process: two chains must not write one file."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DemoTaken(folder) from None
    finally:
        os.close(held)


def _find_accounts(file: Path) -> dict[str, LocalAccount]:
    """Return the players' accounts, made at the first time and kept in a file that only we can read."""
    if not file.exists():
        made: dict[str, LocalAccount] = {role: Account.create() for role in ROLES}
        partial = file.with_suffix(".new")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            json.dump({role: "0x" + account.key.hex() for role, account in made.items()}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        partial.rename(file)
        return made
    try:
        keys = cast(dict[str, str], json.loads(file.read_text()))
        return {role: Account.from_key(keys[role]) for role in ROLES}
    except (ValueError, KeyError, TypeError, OSError):
        raise DemoFolderUnusable(
            f"{file} does not hold the demonstration's accounts. Remove {file.parent} to begin anew."
        ) from None


def make_shop(stage: Stage, database_url: str) -> FastAPI:
    """Return the API that sells the weather, with the facilitator under /facilitator for others to use."""
    key = "0x" + stage.operator.key.hex()
    facilitator = InProcessFacilitator({NETWORK: stage.chain.url}, key, database_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await facilitator.open()
        yield
        await facilitator.aclose()

    shop = FastAPI(title="Weather, for money", lifespan=lifespan)

    async def read_weather(city: str) -> dict[str, str]:
        """A forecast that is worth a cent for five."""
        return {"city": city, "weather": ("sun", "rain", "snow", "wind")[len(city) % 4]}

    shop.get(PATH)(read_weather)
    shop.mount("/facilitator", facilitator_app(facilitator))
    shop.add_middleware(
        Paywall,
        routes=make_routes(),
        payees=make_payees(stage),
        facilitator=facilitator,
        database_url=database_url,
    )
    return shop


def make_routes() -> dict[str, PaidRoute]:
    """What the shop sells."""
    return {f"GET {PATH}": PaidRoute(PRICE, requests=REQUESTS, lifetime=timedelta(hours=1))}


def make_payees(stage: Stage) -> list[Payee]:
    """Who is paid."""
    return [Payee(NETWORK, stage.seller.address)]


@dataclass(slots=True)
class Agent:
    """A program that buys requests as an x402 client, uses them up by its token, and buys again."""

    shop_url: str
    stage: Stage
    teller: Teller
    bought: int = 0
    token: str | None = None

    async def run(self) -> None:
        """Buy until cancelled. What fails is told, and tried again after a pause."""
        async with self._make_client() as client:
            while True:
                try:
                    await self._buy(client)
                    await self._use_up(client)
                except (httpx.HTTPError, PaymentError) as error:
                    self.teller.say("purchase-failed", f"agent        could not buy: {error}")
                await asyncio.sleep(PAUSE_SECONDS)

    def _make_client(self) -> httpx.AsyncClient:
        payer = x402Client()
        register_exact_evm_client(payer, EthAccountSigner(self.stage.buyer), networks=NETWORK)
        payer.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": self.stage.token}]})
        return x402HttpxClient(payer, base_url=self.shop_url, timeout=ANSWER_SECONDS_MAX, trust_env=False)

    async def _buy(self, client: httpx.AsyncClient) -> None:
        city = CITIES[self.bought % len(CITIES)]
        response = await client.get(f"/weather/{city}")
        if response.status_code != OK:
            self.teller.say(
                "purchase-failed", f"agent        was answered {response.status_code}: {response.text[:200]}"
            )
            return
        settled = decode_payment_response_header(response.headers["PAYMENT-RESPONSE"])
        self.token = response.headers.get(TOKEN_HEADER)
        remaining = int(response.headers[REMAINING_HEADER])
        self.bought += 1
        self.teller.say(
            "payment-settled",
            f"{datetime.now(UTC):%H:%M:%S}  settled {PRICE} for GET /weather/{city:<7} "
            f"tx {settled.transaction}  {remaining} more requests by token",
            transaction=settled.transaction,
            network=settled.network,
            price=PRICE,
            requests_remaining=remaining,
        )

    async def _use_up(self, client: httpx.AsyncClient) -> None:
        """Use the token until it is spent; it needs no payment, so a 402 here would be a surprise."""
        for _ in range(REQUESTS - 1):
            if self.token is None:
                return
            await asyncio.sleep(TOKEN_USE_SECONDS)
            response = await client.get("/weather/lisbon", headers={"Authorization": f"Bearer {self.token}"})
            if response.headers.get(REMAINING_HEADER) == "0":
                self.token = None
