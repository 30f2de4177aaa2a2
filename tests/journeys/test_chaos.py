"""A shop as the README starts it, on a bad day: who paid has what he bought, once, and the books say so."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from eth_account.signers.local import LocalAccount
from x402.http.clients.httpx import PaymentError, x402AsyncTransport

from clients.pay import make_x402_client
from faults.walker import Listening
from fixtures.chain import PURSE
from fixtures.chaos import Line, play_chaos
from fixtures.lanes import key_of
from fixtures.running import COMMAND, find_port, running
from fixtures.walks import WHOLE
from tollbook.core.chains import ADDRESS_PADDING, TRANSFER_TOPIC
from tollbook.core.local_chain import GAS_MONEY_WEI, NETWORK, TOKEN_ADDRESS, LocalChain

PAYMENTS_MIN, PAYMENTS_MAX = 100 if WHOLE else 50, 400
BUYERS = 32  # who was cut off waits for some seconds until his shop is known to be dead
SHOPS = 4
PRICE = 10_000
KILL_SECONDS = (0.5, 3.0)  # between two kills
KILLS_MIN = 6 if WHOLE else 4
ASKED_MAX = 2_000
PAUSE_SECONDS = 0.2
START_SECONDS_MAX = 300
RECONCILED_MAX = 12
VALID_SECONDS = 120  # after which no authorization of before can be used any more
BLOCKS = 12
SHOP = """
import os
from fastapi import FastAPI
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall

app = FastAPI()
app.add_middleware(
    Paywall,
    payees=[Payee("eip155:31337", os.environ["PAY_TO"])],
    routes={"GET /weather/{city}": PaidRoute(price="$0.01")},
    facilitator=os.environ["FACILITATOR_URL"],
)

@app.get("/weather/{city}")
async def read_weather(city: str) -> dict[str, str]:
    return {"city": city, "sky": "clear"}
"""


@dataclass
class Program:
    """One that is started again whenever it is killed."""

    arguments: list[str]
    environment: dict[str, str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            environment = os.environ | self.environment
            command = [sys.executable, *self.arguments]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Purchase:
    """One thing that is bought, and all that was signed for it."""

    path: str
    signed: list[str] = field(default_factory=list[str])
    answer: Any = None


@dataclass
class Town:
    """The chain, the shops and their facilitator, and who buys there."""

    chain: LocalChain
    seller: LocalAccount
    database_url: str
    environment: dict[str, str]
    facilitator: Program
    shops: list[Program]
    line: int  # the port at which they reach it
    chance: random.Random
    kills: Counter[str] = field(default_factory=Counter[str])
    over: bool = False

    def programs(self) -> list[Program]:
        return [self.facilitator, *self.shops]

    async def wait_until_up(self) -> None:
        async with httpx.AsyncClient() as client:
            deadline = time.monotonic() + START_SECONDS_MAX
            for program in self.programs():
                while True:
                    try:
                        await client.get(f"http://127.0.0.1:{program.port}/healthz", timeout=20)
                        break
                    except httpx.TransportError:
                        assert time.monotonic() < deadline, program.log.read_text()[-2000:]
                        await asyncio.sleep(PAUSE_SECONDS)

    async def kill_at_random(self) -> None:
        """Until it is over: a process of the shop, the facilitator, or a backend of PostgreSQL."""
        while not self.over:
            await self.wait_until_up()  # or else a slow machine has nothing but recoveries
            await asyncio.sleep(self.chance.uniform(*KILL_SECONDS))
            what = self.chance.choice(["shop", "shop", "shop", "facilitator", "facilitator", "backend"])
            self.kills[what] += 1
            if what == "backend":
                await asyncio.to_thread(self.kill_backend)
                continue
            program = self.facilitator if what == "facilitator" else self.chance.choice(self.shops)
            await asyncio.to_thread(program.kill)

    async def supervise(self) -> None:
        """As a service manager does: what ended is started again, until cancelled."""
        while True:
            for program in self.programs():
                if program.process is None or program.process.poll() is not None:
                    program.start()
            await asyncio.sleep(PAUSE_SECONDS)

    def kill_backend(self) -> None:
        """All others die with it, and the server recovers from its log."""
        try:
            with psycopg.connect(self.database_url) as connection:
                rows = connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tollbook%'"
                ).fetchall()
            if rows:
                os.kill(self.chance.choice(rows)[0], signal.SIGKILL)
        except (psycopg.OperationalError, ProcessLookupError):
            self.kills["none was there"] += 1

    def count_payments(self) -> Iterator[int]:
        """Numbers of payments to make, until enough died over them."""
        for number in range(PAYMENTS_MAX):
            if number >= PAYMENTS_MIN and self.kills.total() >= KILLS_MIN:
                return
            yield number

    async def shop_on(self, payer: LocalAccount, left: Iterator[int]) -> list[Purchase]:
        return [await self.buy(payer, Purchase(f"/weather/{number}")) for number in left]

    async def buy(self, payer: LocalAccount, purchase: Purchase) -> Purchase:
        """By the official client; where he is not answered, by what he signed, as he is told to."""
        for _ in range(ASKED_MAX):
            shop = f"http://127.0.0.1:{self.chance.choice(self.shops).port}{purchase.path}"
            answer = await self.ask(payer, purchase, shop)
            if answer is not None and answer.status_code == 200:
                purchase.answer = answer.json()
                return purchase
            if answer is not None and answer.status_code == 402 and purchase.signed:
                purchase.signed.append("")  # the next one is another payment
            await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError(f"never answered: {purchase}, {answer and answer.text}")

    async def ask(self, payer: LocalAccount, purchase: Purchase, url: str) -> httpx.Response | None:
        try:
            if purchase.signed and purchase.signed[-1]:
                async with httpx.AsyncClient(timeout=20) as client:
                    return await client.get(url, headers={"PAYMENT-SIGNATURE": purchase.signed[-1]})
            line = Listening()
            try:
                transport = x402AsyncTransport(make_x402_client(payer, TOKEN_ADDRESS), line)
                async with httpx.AsyncClient(transport=transport, timeout=20) as client:
                    return await client.get(url)
            finally:
                if line.payment:
                    purchase.signed.append(line.payment)
        except (httpx.TransportError, PaymentError):
            return None

    def reconcile(self) -> dict[str, Any]:
        """What `tollbook payments reconcile` says; it may meet a server that recovers."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "payments", "reconcile", "--json"],
            env=os.environ | self.environment, capture_output=True, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr.decode()
        return json.loads(done.stdout)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(sql.encode()).fetchall()


@contextmanager
def found(chain: LocalChain, folder: Path, chance: random.Random) -> Iterator[Town]:
    """Start a town by the README's commands; its line to the facilitator is somebody else's."""
    operator, seller = chain.make_account(wei=GAS_MONEY_WEI), chain.make_account()
    (folder / "shop.py").write_text(SHOP)
    api, port, line = find_port(), find_port(), find_port()
    payees = json.dumps([{"network": NETWORK, "address": seller.address}])
    environment = {"TOLLBOOK_RPC_URLS": json.dumps({NETWORK: chain.url}), "TOLLBOOK_PAYEES": payees}
    up_arguments = ["up", "--port", str(api), "--data-dir", str(folder / "data")]
    with running(*up_arguments, **environment) as up, ExitStack() as stack:
        environment["DATABASE_URL"] = url = up.wait_for("database")["url"]
        up.wait_for("ready")
        key = {"TOLLBOOK_FACILITATOR_KEY": key_of(operator)}
        arguments = ["-c", COMMAND, "facilitator", "--rpc", f"{NETWORK}={chain.url}", "--port", str(port)]
        facilitator = Program(arguments, environment | key, port, folder / "facilitator.log")
        selling = {"PAY_TO": seller.address, "FACILITATOR_URL": f"http://127.0.0.1:{line}"}
        shops = [
            Program(
                ["-m", "uvicorn", "--app-dir", str(folder), "shop:app", "--port", str(own := find_port())],
                environment | selling, own, folder / f"shop{number}.log",
            )
            for number in range(SHOPS)
        ]  # fmt: skip
        town = Town(chain, seller, url, environment, facilitator, shops, line, chance)
        for program in town.programs():
            stack.callback(program.kill)
        yield town


async def live_through(town: Town, payers: list[LocalAccount]) -> tuple[list[Purchase], Line]:
    """Buy while everything dies; then let it all be calm."""
    async with play_chaos(town.line, town.facilitator.port, town.chance) as line:
        supervising = asyncio.create_task(town.supervise())
        await town.wait_until_up()
        killing = asyncio.create_task(town.kill_at_random())
        left = town.count_payments()
        bought = await asyncio.gather(*(town.shop_on(payer, left) for payer in payers))
        town.over = line.calm = True
        await killing
        await town.wait_until_up()
        supervising.cancel()
    return [purchase for of_one in bought for purchase in of_one], line


def bring_to_rest(town: Town) -> None:
    """Whatever is open ends: no authorization can be used any more, and the reconciler looks."""
    town.chain.call("evm_increaseTime", VALID_SECONDS)
    town.chain.call("anvil_mine", hex(BLOCKS))
    for _ in range(RECONCILED_MAX):
        report = town.reconcile()
        pending = town.query(
            """
            SELECT (SELECT count(*) FROM payments.x402_settlements WHERE status NOT IN ('settled', 'failed'))
                 + (SELECT count(*) FROM payments.x402_payments WHERE status = 'pending')
            """
        )
        if report["open_count"] == 0 and pending == [(0,)]:
            return
        time.sleep(PAUSE_SECONDS)
    raise AssertionError(f"still open: {report}, {pending}")


def test_a_shop_whose_parts_die_all_the_time_is_paid_once_for_all_it_sold(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")  # noqa: T201 - to play it again
    with LocalChain.start() as chain:
        chain.ensure_token()
        payers = [chain.make_account(amount=PURSE) for _ in range(BUYERS)]
        with found(chain, tmp_path, random.Random(seed)) as town:
            purchases, line = asyncio.run(live_through(town, payers))
            bring_to_rest(town)
            check(town, payers, purchases)
            print(f"{dict(town.kills)} killed, {dict(line.done)}")  # noqa: T201
            assert sum(town.kills.values()) >= KILLS_MIN
            assert line.done["lost answer"]
            assert line.done["lost request"]


def check(town: Town, payers: list[LocalAccount], purchases: list[Purchase]) -> None:
    """The chain, the books and the buyers say the same."""
    topics = [TRANSFER_TOPIC, None, ADDRESS_PADDING + town.seller.address[2:].lower()]
    wanted = {"fromBlock": "earliest", "address": TOKEN_ADDRESS, "topics": topics}
    moved = Counter(log["transactionHash"] for log in town.chain.call("eth_getLogs", wanted))
    assert PAYMENTS_MIN <= len(purchases) == moved.total()
    assert all(one.answer == {"city": one.path.rpartition("/")[2], "sky": "clear"} for one in purchases)
    assert town.chain.read_balance(town.seller.address) == len(purchases) * PRICE
    assert sum(PURSE - town.chain.read_balance(payer.address) for payer in payers) == len(purchases) * PRICE
    settled = town.query("SELECT tx_hash FROM payments.x402_settlements WHERE status = 'settled'")
    assert Counter(hash_ for (hash_,) in settled) == moved
    granted = town.query(
        """
        SELECT p.tx_hash, p.requests_used, p.amount::int,
               (SELECT count(*) = 1 FROM payments.x402_usage u WHERE u.payment_id = p.payment_id)
        FROM payments.x402_payments p WHERE p.settlement = 'settled'
        """
    )
    assert Counter(hash_ for hash_, *_ in granted) == moved
    assert {tuple(rest) for _, *rest in granted} == {(1, PRICE, True)}
