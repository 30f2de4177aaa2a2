"""Secrets are planted everywhere they may be; then logs, errors, traces, reprs and a dump are searched."""

import asyncio
import base64
import dataclasses
import json
import random
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI, Response
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.http.middleware.fastapi import set_settlement_overrides
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.schemas import PaymentPayload

from clients.bare_sdk import make_buyer
from faults.walker import Listening
from fixtures.facilitator import DEAD, key_of
from fixtures.planted import Planted
from fixtures.rpc_proxy import Proxy, play_proxy
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.schemes.batch import find_storage
from tollbook.books.payments.schemes.channels import claim
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock, database, keys, telemetry
from tollbook.core.chains import Chain, Token
from tollbook.core.database import Database
from tollbook.core.lanes import Lanes
from tollbook.core.local_chain import (
    NETWORK,
    TOKEN_ADDRESS,
    TOKEN_DECIMALS,
    TOKEN_NAME,
    TOKEN_SYMBOL,
    TOKEN_VERSION,
    LocalChain,
)
from tollbook.core.settings import Settings
from tollbook.embedded import binaries
from tollbook.entrypoints.api import create_api

# What a program raises ends its connection, whenever the server comes to it: none is used twice.
connect = partial(httpx.AsyncClient, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
HIDDEN_IN_DEPTH_MAX = 12
MUTILATED_MAX = 40
SEED = 402


@pytest.mark.parametrize("where", range(6))
def test_what_is_searched_for_is_found_in_every_spelling(where: int) -> None:
    planted = Planted()
    key = planted.hide("a key", "0x" + secrets.token_hex(32))
    raw = bytes.fromhex(key[2:])
    spellings = [
        key,
        key[2:].upper(),
        base64.b64encode(raw).decode(),
        base64.b64encode(key.encode()).decode(),
    ]
    spellings += [f"\\x{raw.hex()}", str(raw)]
    planted.hear("a log", f"before {spellings[where]} after")
    assert planted.find() == {("a key", "a log")}


class Broken:
    """A facilitator that breaks in the middle, as software does."""

    def __init__(self, real: Facilitator) -> None:
        self.verify, self.supported, self.aclose = real.verify, real.supported, real.aclose

    async def settle(self, payload: PaymentPayload, requirements: Any) -> Any:
        raise RuntimeError("a bug")


def make_app(paywall: dict[str, Any]) -> FastAPI:
    app = FastAPI()

    @app.get("/good")
    async def good() -> dict[str, str]:
        return {"answer": paywall["answer"]}

    @app.get("/upto")
    @app.get("/channel")
    async def used(response: Response) -> dict[str, str]:
        set_settlement_overrides(response, {"amount": "40%"})
        return await good()

    @app.get("/bad")
    async def bad() -> dict[str, str]:
        raise RuntimeError("a bug in the shop")

    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        routes={
            "GET /good": PaidRoute("$0.01", requests=2),
            "GET /bad": PaidRoute("$0.01", settle="before"),
            "GET /upto": PaidRoute("$0.01", scheme="upto"),
            "GET /channel": PaidRoute("$0.01", scheme="batch-settlement"),
        },
        **{name: value for name, value in paywall.items() if name != "answer"},
    )
    return app


@dataclass
class Scene:
    """A shop whose every secret is planted, and those who ask it."""

    planted: Planted
    seller: str
    token: str
    payer: LocalAccount
    database_url: str
    rpc_url: str
    proxy: Proxy
    facilitator: InProcessFacilitator
    buyer: x402Client

    def describe(self, **changes: Any) -> dict[str, Any]:
        described = {
            "payees": [Payee(NETWORK, self.seller)],
            "facilitator": self.facilitator,
            "database_url": self.database_url,
            "rpc_urls": {NETWORK: self.rpc_url},
            "answer": self.planted.secrets["an answer"],
        }
        return described | changes

    async def sign(self, client: httpx.AsyncClient, path: str) -> str:
        asked = decode_payment_required_header((await client.get(path)).headers["PAYMENT-REQUIRED"])
        payment = await self.buyer.create_payment_payload(asked)
        assert isinstance(payment, PaymentPayload)
        number = len(self.planted.secrets)
        signatures = list(find_signatures(payment.payload))
        assert signatures
        for signature in signatures:
            self.planted.hide(f"signature {number} of {path}", signature)
            self.planted.hide(f"r {number}", signature[:66])
            self.planted.hide(f"s {number}", signature[66:130])
        info: Any = payment.extensions
        self.planted.hide(f"challenge {number}", info["tollbook"]["info"]["challenge"])
        return encode_payment_signature_header(payment)

    async def ask(self, client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
        """What is answered; of refusals, the words are heard."""
        answer = await client.get(path, headers=headers)
        if answer.status_code >= 300:
            # A payer who fell behind his channel is shown his own last voucher, as x402 has it.
            said = re.sub(r'"voucherState": \{.*?\}', "", answer.text)
            self.planted.hear(f"the body of a {answer.status_code}", said)
            shown = {name: value for name, value in answer.headers.items() if name != "payment-required"}
            if "payment-token" not in shown:
                self.planted.hear(f"the headers of a {answer.status_code}", json.dumps(shown))
        return answer

    async def pay(self, client: httpx.AsyncClient, path: str, header: str | None = None) -> httpx.Response:
        header = header or await self.sign(client, path)
        return await self.ask(client, path, **{"PAYMENT-SIGNATURE": header})

    async def fail(self, path: str = "/good", **changes: Any) -> int:
        """How a payment is answered by a shop with something broken."""
        good, bad = self.describe(), self.describe(**changes)
        async with serve(make_app(good)) as url, connect(base_url=url) as client:
            header = await self.sign(client, path)
        async with serve(make_app(bad)) as url, connect(base_url=url) as client:
            return (await self.pay(client, path, header)).status_code


@pytest.fixture
async def scene(
    planted: Planted,
    schemes_chain: LocalChain,
    token: str,
    permit2_payer: LocalAccount,
    operator: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    chain, payer = schemes_chain, permit2_payer
    monkeypatch.setenv("TOLLBOOK_CHANNEL_KEY", planted.hide("the channels' key", secrets.token_hex(32)))
    planted.hide("the operator's key", key_of(operator))
    planted.plant("an answer")
    database_url += "&password=" + planted.plant("the database's password")
    async with play_proxy(chain.url) as proxy:
        keys = f"/v3/{planted.plant('the key in the node URL')}?key={planted.plant('the key in its query')}"
        rpc_url = proxy.url + keys
        facilitator = InProcessFacilitator(
            {NETWORK: rpc_url}, key_of(operator), database_url, receipt_seconds_max=1
        )
        buyer = make_buyer(payer, chain.url)
        yield Scene(planted, seller.address, token, payer, database_url, rpc_url, proxy, facilitator, buyer)
        await facilitator.aclose()


async def play_round_trip(scene: Scene) -> None:
    """Buy, lose the answer, buy with the token until it is spent, and what else happens on a good day."""
    planted = scene.planted
    async with (
        serve(make_app(scene.describe())) as url,
        connect(base_url=url) as client,
    ):
        header = await scene.sign(client, "/good")
        paid = await scene.pay(client, "/good", header)
        assert paid.json() == {"answer": planted.secrets["an answer"]}
        assert (await scene.pay(client, "/good", header)).headers["payment-replayed"] == "true"
        bearer = planted.hide("an access token", paid.headers["payment-token"])
        statuses = [(await scene.ask(client, "/good", Authorization=f"Bearer {bearer}")) for _ in range(2)]
        assert [answer.status_code for answer in statuses] == [200, 402]
        assert (await scene.pay(client, "/good?other=1", header)).status_code == 409
        assert (await scene.pay(client, "/bad", header)).status_code == 402
        broken = await scene.pay(client, "/bad")
        assert broken.status_code == 500
        planted.hide("the token of a failed request", broken.headers["payment-token"])
        assert (await scene.ask(client, "/good", Authorization=f"Bearer {bearer}x")).status_code == 401


async def play_schemes(scene: Scene) -> None:
    """Permit2, usage and channels on a good day, and on days when the node does not answer all."""
    token = Token(TOKEN_ADDRESS, TOKEN_SYMBOL, TOKEN_DECIMALS, TOKEN_NAME, TOKEN_VERSION)
    by_permit2 = {"payees": [Payee(NETWORK, scene.seller, token, "permit2")]}
    async with (
        serve(make_app(scene.describe(**by_permit2))) as url,
        connect(base_url=url) as client,
    ):
        for path in ("/good", "/upto"):
            header = await scene.sign(client, path)
            answers = [await scene.pay(client, path, header) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
            assert (await scene.pay(client, path + "?other=1", header)).status_code == 409
            scene.planted.hide(
                f"a token of {path}", answers[0].headers.get("payment-token", secrets.token_hex(9))
            )
    async with serve(make_app(scene.describe())) as url:
        line = Listening()
        transport = x402AsyncTransport(scene.buyer, line)
        async with connect(transport=transport, base_url=url) as client:
            for _ in range(2):
                bought = await client.get("/channel")
                assert bought.status_code == 200, bought.text
                hide_payment(scene.planted, line.payment)
        async with connect(base_url=url) as client:
            header = await scene.sign(client, "/channel")
            assert (await scene.pay(client, "/channel", header)).status_code == 200
            for wrong in random.Random(SEED).sample(list(mutilate(header)), MUTILATED_MAX):
                await scene.pay(client, "/channel", wrong)
    for path, changes in (("/good", by_permit2), ("/upto", by_permit2), ("/channel", {})):
        scene.proxy.lost_answers = {"eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_getLogs"}
        failed = await scene.fail(path, **changes)
        assert failed == 503 or path == "/channel", failed  # whose vouchers need no node
        scene.proxy.lost_answers = {"eth_call", "eth_getCode", "eth_chainId", "eth_blockNumber"}
        await scene.fail(path, **changes)
        scene.proxy.lost_answers = set()
    done = await claim(find_storage(scene.database_url), scene.facilitator, NETWORK)
    scene.planted.hear("a claim", repr(done))
    assert done[0].vouchers == 1, done


def hide_payment(planted: Planted, header: str) -> None:
    """Of a payment that the client made by himself."""
    for signature in find_signatures(json.loads(base64.b64decode(header))["payload"]):
        planted.hide(f"signature {len(planted.secrets)} of a channel", signature)


def find_signatures(thing: Any) -> Iterator[str]:
    """All that are in a payload, wherever."""
    if isinstance(thing, dict):
        for name, value in thing.items():
            if "signature" in name.lower() and isinstance(value, str):
                yield value
            else:
                yield from find_signatures(value)


def find_paths(thing: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """The ways to everything that is in a payload."""
    if isinstance(thing, dict):
        for name, value in thing.items():
            yield (*above, name)
            yield from find_paths(value, *above, name)


def mutilate(header: str) -> Iterator[str]:
    """Payments that are none, with the signature still somewhere in them."""
    body = json.loads(base64.b64decode(header))
    signature = next(find_signatures(body["payload"]))
    yield header[:-40]
    yield header + "!"
    for path in (
        ("x402Version",), ("accepted",), ("payload",), ("extensions",), ("accepted", "amount"),
        ("accepted", "payTo"), ("accepted", "network"), ("accepted", "extra"),
        *find_paths(body["payload"], "payload"),
    ):  # fmt: skip
        misplaced = [signature, [signature], {"x": signature}, signature + "ff", signature[:-4]]
        # Who writes his signature where terms belong reads it in the answer, which tells what does not fit.
        for wrong in (None, 7, "x", {"x": 7}, *(misplaced if path[0] != "accepted" else ())):
            changed = json.loads(json.dumps(body))
            place = changed
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = wrong
            yield base64.b64encode(json.dumps(changed).encode()).decode()


async def play_malformed(scene: Scene) -> None:
    async with (
        serve(make_app(scene.describe())) as url,
        connect(base_url=url) as client,
    ):
        header = await scene.sign(client, "/good")
        statuses = {(await scene.pay(client, "/good", wrong)).status_code for wrong in mutilate(header)}
        assert statuses <= {400, 402, 503, 409, 200}, statuses
        assert {400, 402} <= statuses


async def play_failures(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    planted, facilitator = scene.planted, scene.facilitator
    monkeypatch.setattr(database, "POOL_WAIT_SECONDS_MAX", 0.3)
    key = planted.plant("the facilitator's key")
    user = planted.plant("the facilitator's password")
    dead = DEAD.replace("//", f"//me:{user}@") + "/" + planted.plant("the key in the facilitator's URL")
    remote = RemoteFacilitator(dead, {"Authorization": f"Bearer {key}", "X-Webhook-Secret": key})
    assert await scene.fail(facilitator=remote) == 503
    assert await scene.fail(facilitator=dead) == 503
    assert await scene.fail(facilitator=Broken(facilitator)) == 503
    password = planted.secrets["the database's password"]
    gone = f"postgresql://tollbook:{password}@127.0.0.1:9/gone"
    assert await scene.fail(database_url=gone) == 503
    for unreadable in (f"postgresql://tollbook:{password}%zz@127.0.0.1:9/gone", gone.replace(":9/", ":x/")):
        assert await scene.fail(database_url=unreadable) == 503
    scene.proxy.lost_answers = {"eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_getLogs"}
    assert await scene.fail() == 503
    scene.proxy.lost_answers = {"eth_call", "eth_getCode", "eth_chainId", "eth_blockNumber"}
    assert await scene.fail() == 503
    scene.proxy.lost_answers = set()
    scene.proxy.refusals = {"eth_sendRawTransaction": ["insufficient funds for gas"] * 9}
    assert await scene.fail() == 503
    scene.proxy.refusals = {}
    no_node = InProcessFacilitator(
        {NETWORK: f"{DEAD}/{planted.secrets['the key in the node URL']}"},
        planted.secrets["the operator's key"],
        scene.database_url,
    )
    assert await scene.fail(facilitator=no_node) == 503
    for each in (remote, no_node):
        await each.aclose()


async def play_api(scene: Scene, books: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's side, traced."""
    planted = scene.planted
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "make_tracer", lambda: provider.get_tracer("test"))
    async with books.write() as tx:
        grant = await keys.create(tx, name="test", scopes=["*"], expires_at=None, now=clock.now())
    planted.hide("an API key", grant.secret)
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps({NETWORK: scene.rpc_url}))
    async with (
        serve(create_api(scene.database_url)) as url,
        connect(base_url=url) as client,
    ):
        for path in ("/v1/payments", "/v1/keys", "/v1/payments/pay_0", "/metrics", "/nothing", "/v1/journal"):
            for secret in (grant.secret, grant.secret + "x"):
                answer = await scene.ask(client, path, Authorization=f"Bearer {secret}")
                planted.hear(f"the API's {path}", answer.text)
        lost = {"network": NETWORK, "tx_hash": "0x" + "11" * 32, "signature": "0x" + "22" * 65}
        await client.post("/v1/payments", json=lost, headers={"Idempotency-Key": "once"})
    spans = exporter.get_finished_spans()
    assert spans
    planted.hear("the traces", "\n".join(span.to_json() for span in spans))


def dump(url: str) -> str:
    done = subprocess.run([binaries() / "pg_dump", "--inserts", url], capture_output=True, check=True)
    return done.stdout.decode()


async def test_no_secret_is_in_any_log_error_trace_or_dump(
    scene: Scene, database: Database, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    await play_round_trip(scene)
    await play_malformed(scene)
    await play_schemes(scene)
    with monkeypatch.context() as hurried:
        await play_failures(scene, hurried)
    await play_api(scene, database, monkeypatch)
    dumped = await asyncio.to_thread(dump, scene.database_url)
    for table in (
        "x402_payments",
        "x402_settlements",
        "x402_answers",
        "x402_tokens",
        "transactions",
        "keys",
        "channels",
    ):
        assert f"{table} VALUES" in dumped, table
    scene.planted.hear("the dump", dumped)
    told = capfd.readouterr()
    scene.planted.hear("standard output", told.out)
    scene.planted.hear("standard error", told.err)
    assert scene.planted.said["the log"]
    assert scene.planted.find() == set()


def find_ours(thing: Any, depth: int, seen: dict[int, Any]) -> None:
    """All objects of Tollbook's classes that a thing holds, wherever."""
    if id(thing) in seen or depth > HIDDEN_IN_DEPTH_MAX or isinstance(thing, type | str | bytes | int):
        return
    seen[id(thing)] = thing
    held: list[Any] = []
    if isinstance(thing, dict):
        held = list(thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        held = list(thing)
    elif type(thing).__module__.startswith(("tollbook", "eth_account", "x402", "starlette", "fastapi")):
        held = list(getattr(thing, "__dict__", {}).values())
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        held += [getattr(thing, name) for name in slots if hasattr(thing, name)]
    for each in held:
        find_ours(each, depth + 1, seen)


async def test_no_repr_shows_a_secret(
    scene: Scene, database: Database, operator: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = scene.planted
    key, rpc_urls = key_of(operator), {NETWORK: scene.rpc_url}
    monkeypatch.setenv("DATABASE_URL", scene.database_url)
    monkeypatch.setenv("TOLLBOOK_RPC_URLS", json.dumps(rpc_urls))
    remote = RemoteFacilitator(DEAD + "/" + planted.plant("a path"), {"X": planted.plant("a header")})
    lanes = Lanes(database, rpc_urls, [key])
    paywall = Paywall(make_app(scene.describe()), routes={"GET /": PaidRoute("$1")}, **{
        name: value for name, value in scene.describe().items() if name != "answer"
    })  # fmt: skip
    await paywall._open()
    await scene.facilitator.open()
    async with Chain(NETWORK, scene.rpc_url) as chain, database.write() as tx:
        grant = await keys.create(tx, name="test", scopes=["*"], expires_at=None, now=clock.now())
        planted.hide("an API key", grant.secret)
        built = [Settings(), PaymentsSettings(), remote, lanes, paywall, scene.facilitator, chain, grant]
        seen: dict[int, Any] = {}
        find_ours(built, 0, seen)
        ours = [thing for thing in seen.values() if type(thing).__module__.startswith("tollbook")]
        for thing in ours:
            planted.hear(type(thing).__qualname__, f"{thing!r} {thing}")
            if dataclasses.is_dataclass(thing):
                planted.hear(type(thing).__qualname__, f"{thing!r}")
    await asyncio.gather(paywall.close(), lanes.aclose(), remote.aclose())
    assert {"Paywall", "InProcessFacilitator", "Lanes", "Key", "Node", "Chain", "Settings"} <= set(
        planted.said
    )
    assert planted.find() == set()
