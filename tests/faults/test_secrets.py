"""Secrets are planted everywhere they may be; then logs, errors, traces, reprs and a dump are searched."""

import asyncio
import base64
import dataclasses
import json
import logging
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.schemas import PaymentPayload

from clients.pay import make_x402_client
from fixtures.facilitator import DEAD, key_of
from fixtures.rpc_proxy import Proxy, play_proxy
from fixtures.serve import serve
from tollbook.books.payments.facilitator.in_process import Facilitator, InProcessFacilitator
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core import clock, database, keys, telemetry
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.embedded import binaries
from tollbook.core.lanes import Lanes
from tollbook.core.local_chain import NETWORK, LocalChain
from tollbook.core.settings import Settings
from tollbook.entrypoints.api import create_api

HIDDEN_IN_DEPTH_MAX = 12


@dataclass
class Planted:
    """What must be found nowhere, by what it is; and everything that was said, by where."""

    secrets: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def plant(self, what: str) -> str:
        return self.hide(what, secrets.token_urlsafe(24))

    def hide(self, what: str, secret: str) -> str:
        self.secrets[what] = secret
        return secret

    def hear(self, where: str, text: str) -> None:
        self.said[where] = self.said.get(where, "") + "\n" + text

    def find(self) -> set[tuple[str, str]]:
        """Which secret is where."""
        return {
            (what, where)
            for what, secret in self.secrets.items()
            for where, text in self.said.items()
            if any(spelling in text for spelling in spell(secret))
        }


def spell(secret: str) -> set[str]:
    """A secret as it may be written: text, and what the text is the hexadecimal of, in what ever coding."""
    raws = {secret.encode()}
    digits = secret.removeprefix("0x").lower()
    try:
        raws.add(bytes.fromhex(digits))
        texts = {digits, digits.upper()}
    except ValueError:
        texts = {secret, quote(secret, safe="")}
    for raw in raws:
        texts |= {raw.hex(), raw.hex().upper(), repr(raw)[2:-1]}
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            texts.add(encode(raw).decode().rstrip("="))
    return texts


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


@pytest.fixture
def planted() -> Iterator[Planted]:
    """Listens to every log, that of Tollbook whole."""
    planted = Planted()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            planted.hear("the log", self.format(record))

    ear = Ear(logging.DEBUG)
    ear.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("tollbook")
    before = root.level, ours.level
    root.addHandler(ear)
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    yield planted
    root.removeHandler(ear)
    root.setLevel(before[0])
    ours.setLevel(before[1])


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

    @app.get("/bad")
    async def bad() -> dict[str, str]:
        raise RuntimeError("a bug in the shop")

    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        routes={
            "GET /good": PaidRoute("$0.01", requests=2),
            "GET /bad": PaidRoute("$0.01", settle="before"),
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
    stood: list[Any] = field(default_factory=list)  # what was built, to look into

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
        payment = await make_x402_client(self.payer, self.token).create_payment_payload(asked)
        assert isinstance(payment, PaymentPayload)
        number = len(self.planted.secrets)
        signature = payment.payload["signature"]
        self.planted.hide(f"signature {number}", signature)
        self.planted.hide(f"r {number}", signature[:66])
        self.planted.hide(f"s {number}", signature[66:130])
        info: Any = payment.extensions
        self.planted.hide(f"challenge {number}", info["tollbook"]["info"]["challenge"])
        return encode_payment_signature_header(payment)

    async def ask(self, client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
        """What is answered; of refusals, the words are heard."""
        answer = await client.get(path, headers=headers)
        if answer.status_code >= 300:
            self.planted.hear(f"the body of a {answer.status_code}", answer.text)
            shown = {name: value for name, value in answer.headers.items() if name != "payment-required"}
            if "payment-token" not in shown:
                self.planted.hear(f"the headers of a {answer.status_code}", json.dumps(shown))
        return answer

    async def pay(self, client: httpx.AsyncClient, path: str, header: str | None = None) -> httpx.Response:
        header = header or await self.sign(client, path)
        return await self.ask(client, path, **{"PAYMENT-SIGNATURE": header})

    async def fail(self, **changes: Any) -> int:
        """How a payment is answered by a shop with something broken."""
        good, bad = self.describe(), self.describe(**changes)
        async with serve(make_app(good)) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            header = await self.sign(client, "/good")
        async with serve(make_app(bad)) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            return (await self.pay(client, "/good", header)).status_code


@pytest.fixture
async def scene(
    planted: Planted,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    operator: LocalAccount,
    seller: LocalAccount,
    database_url: str,
) -> AsyncIterator[Scene]:
    planted.hide("the operator's key", key_of(operator))
    planted.plant("an answer")
    database_url += "&password=" + planted.plant("the database's password")
    async with play_proxy(chain.url) as proxy:
        keys = f"/v3/{planted.plant('the key in the node URL')}?key={planted.plant('the key in its query')}"
        rpc_url = proxy.url + keys
        facilitator = InProcessFacilitator(
            {NETWORK: rpc_url}, key_of(operator), database_url, receipt_seconds_max=1
        )
        yield Scene(planted, seller.address, token, payer, database_url, rpc_url, proxy, facilitator)
        await facilitator.aclose()


async def play_round_trip(scene: Scene) -> None:
    """Buy, lose the answer, buy with the token until it is spent, and what else happens on a good day."""
    planted = scene.planted
    async with (
        serve(make_app(scene.describe())) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
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


def mutilate(header: str) -> Iterator[str]:
    """Payments that are none, with the signature still somewhere in them."""
    body = json.loads(base64.b64decode(header))
    yield header[:-40]
    yield header + "!"
    for path in (
        ("x402Version",), ("accepted",), ("payload",), ("extensions",), ("payload", "authorization"),
        ("payload", "signature"), ("accepted", "amount"), ("accepted", "payTo"), ("accepted", "network"),
        ("accepted", "extra"), *(("payload", "authorization", each) for each in
                                  ("from", "to", "value", "nonce", "validAfter", "validBefore")),
    ):  # fmt: skip
        signature = body["payload"]["signature"]
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
        httpx.AsyncClient(base_url=url, timeout=60) as client,
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
        httpx.AsyncClient(base_url=url, timeout=60) as client,
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
    await play_failures(scene, monkeypatch)
    await play_api(scene, database, monkeypatch)
    dumped = await asyncio.to_thread(dump, scene.database_url)
    for table in ("x402_payments", "x402_settlements", "x402_answers", "x402_tokens", "transactions", "keys"):
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
