"""Secrets of a Solana payment are planted; then logs, errors, reprs, outputs and a dump are searched."""

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from solders.transaction import VersionedTransaction
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header

from clients.pay_solana import sign
from fixtures.planted import Planted
from fixtures.running import find_port, run, running, write_key
from fixtures.serve import serve
from fixtures.solana import NETWORK
from fixtures.solana_desk import Desk
from tollbook.books.payments.claims import claim_message
from tollbook.books.payments.facilitator.families import make_facilitator
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.embedded import binaries
from tollbook.entrypoints.api import create_api

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

METHODS = (
    "simulateTransaction",
    "sendTransaction",
    "getSignatureStatuses",
    "getTransaction",
    "getGenesisHash",
)


class Scene:
    """A shop on Solana whose every secret is planted."""

    def __init__(self, planted: Planted, desk: Desk) -> None:
        self.planted, self.desk = planted, desk
        planted.hide("the fee payer's key", str(desk.operator))
        planted.hide("the fee payer's secret", desk.operator.secret().hex())
        planted.hide("the fee payer's key file", json.dumps(list(bytes(desk.operator))))
        self.database_url = f"{desk.database_url}&password={planted.plant('the database password')}"
        self.node_url = f"{desk.chain.url}/{planted.plant('the key in the node URL')}"

    @asynccontextmanager
    async def open(self, seconds: float = 0.5) -> AsyncIterator[httpx.AsyncClient]:
        desk, app = self.desk, FastAPI()

        @app.get("/good")
        async def good() -> str:
            return "goods"

        facilitator = make_facilitator({NETWORK: self.node_url}, str(desk.operator), self.database_url)
        facilitator._families["solana"]._settle_seconds_max = seconds  # pyright: ignore
        app.add_middleware(
            Paywall,  # pyright: ignore[reportArgumentType]
            payees=[Payee("solana-devnet", str(desk.seller.pubkey()))],
            routes={"GET /good": PaidRoute("$0.01", requests=2)},
            facilitator=facilitator,
            database_url=self.database_url,
            rpc_urls={NETWORK: self.node_url},
        )
        async with serve(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client
        self.planted.hear("a repr", repr((facilitator, vars(facilitator))))
        await facilitator.aclose()

    async def sign(self, client: httpx.AsyncClient) -> str:
        asked = decode_payment_required_header((await client.get("/good")).headers["PAYMENT-REQUIRED"])
        payment = await sign(self.desk.payer, self.desk.chain.url, asked.accepts[0])
        text = payment.payload["transaction"]
        signature = VersionedTransaction.from_bytes(base64.b64decode(text)).signatures[1]
        number = len(self.planted.secrets)
        self.planted.hide(f"a transaction {number}", text)
        self.planted.hide(f"a signature {number}", str(signature))
        self.planted.hide(f"a signature's bytes {number}", bytes(signature).hex())
        return encode_payment_signature_header(payment.model_copy(update={"extensions": asked.extensions}))

    async def present(self, client: httpx.AsyncClient, header: str) -> httpx.Response:
        answer = await client.get("/good", headers={"PAYMENT-SIGNATURE": header})
        self.planted.hear(f"a {answer.status_code}", answer.text)
        if "payment-token" in answer.headers:
            self.planted.hide(f"token {len(self.planted.secrets)}", answer.headers["payment-token"])
        return answer


async def play(scene: Scene) -> None:
    """Good days, days on which the node loses an answer, and a claim."""
    desk = scene.desk
    async with scene.open() as client:
        header = await scene.sign(client)
        assert [(await scene.present(client, header)).status_code for _ in range(2)] == [200, 200]
        for method in METHODS:
            header = await scene.sign(client)
            desk.chain.behaviour.lost_answers = {method}
            desk.chain.behaviour.refusals = {"getTransaction": ["Node is unhealthy"]}
            await scene.present(client, header)
            desk.chain.behave()
            assert (await scene.present(client, header)).status_code == 200, method
        desk.chain.behaviour.before_landing.append(desk.drain)
        assert (await scene.present(client, await scene.sign(client))).status_code == 402


async def claim(scene: Scene) -> None:
    desk = scene.desk
    tx_hash = desk.send(desk.transfer(10_000))
    desk.chain.advance(33)
    signed = desk.payer.sign_message(claim_message(NETWORK, tx_hash, "GET /good").encode())
    scene.planted.hide("a claim's signature", str(signed))
    settings = PaymentsSettings(
        routes={"GET /good": PaidRoute("$0.01")},
        payees=[Payee("solana-devnet", str(desk.seller.pubkey()))],
        rpc_urls={NETWORK: scene.node_url},
    )
    scene.planted.hear("the settings", repr(settings))
    api = create_api(scene.database_url, settings)
    body = {
        "network": NETWORK,
        "tx_hash": tx_hash,
        "payer": str(desk.payer.pubkey()),
        "signature": str(signed),
    }
    async with (
        api.router.lifespan_context(api),
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://api") as client,
    ):
        claimed = await client.post("/v1/payments", json=body)
        assert claimed.status_code == 201, claimed.text
        scene.planted.hide("a claimed token", claimed.json()["access_token"])
        for wrong in ({"signature": body["signature"][:-1]}, {"tx_hash": "no hash"}):
            refused = await client.post("/v1/payments", json=body | wrong)
            scene.planted.hear("a refused claim", refused.text)


def run_commands(scene: Scene, folder: Any) -> None:
    """The command line, with a key of Solana: it serves, it looks, it refuses."""
    key = write_key(folder, "fee.json", json.dumps(list(bytes(scene.desk.operator))))
    rpc = f"solana-devnet={scene.node_url}"
    port = str(find_port())
    with running(
        "facilitator", "--rpc", rpc, "--key-file", key, "--port", port, TOLLBOOK_STORAGE="memory"
    ) as served:
        served.wait_for("serving")
        httpx.post(f"http://127.0.0.1:{port}/settle", json={"x402Version": 2}, timeout=60)
        assert served.end(15) == 0
        scene.planted.hear("the facilitator", json.dumps(served.told) + served.read_complaints())
    for arguments in (
        ("doctor", "--rpc", rpc, "--key-file", key, "--data-dir", str(folder)),
        (
            "facilitator",
            "--rpc",
            rpc,
            "--key-file",
            write_key(folder, "half.json", str(scene.desk.operator)[:-1]),
        ),
    ):
        ran = run(*arguments)
        scene.planted.hear(f"the command {arguments[0]}", ran.stdout + ran.stderr)


async def test_no_secret_of_a_solana_payment_is_in_any_log_error_or_dump(
    planted: Planted, desk: Desk, tmp_path: Any
) -> None:
    scene = Scene(planted, desk)
    await play(scene)
    await asyncio.to_thread(desk.chain.give, desk.payer.pubkey(), desk.requirements().asset, 10**6)
    await claim(scene)
    await asyncio.to_thread(run_commands, scene, tmp_path)
    dumped = await asyncio.to_thread(
        subprocess.run,
        [binaries() / "pg_dump", "--inserts", desk.database_url],
        capture_output=True,
        check=True,
    )
    text = dumped.stdout.decode()
    for table in ("x402_payments", "x402_settlements", "x402_solana_settlements", "x402_answers"):
        assert f"payments.{table} VALUES" in text, table
    planted.hear("the dump", text)
    assert planted.said.keys() >= {"the log", "a repr", "a 200", "a 402", "the facilitator", "the dump"}
    assert planted.find() == set()
