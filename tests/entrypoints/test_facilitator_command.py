"""`tollbook facilitator`, started: one command for EVM and Solana, paid through the official clients."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI
from solders.keypair import Keypair

from clients.pay import paying_client as paying_evm_client
from clients.pay_solana import paying_client
from fixtures.lanes import key_of
from fixtures.pay_mjs import pay_with
from fixtures.running import Running, find_port, running, write_key
from fixtures.serve import serve
from fixtures.solana import MINT, NETWORK
from fixtures.solana_desk import AMOUNT, Desk
from tollbook.books.payments.paywall import PaidRoute, Payee, Paywall
from tollbook.core import local_chain
from tollbook.core.local_chain import LocalChain

pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")

HAS_NODE_CLIENT = (Path(__file__).parents[2] / "node_modules" / "@x402" / "svm").exists()


@dataclass
class Served:
    """The running command, where it serves."""

    process: Running
    url: str

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)


@pytest.fixture(params=["JSON array", "base 58"])
def served(
    request: pytest.FixtureRequest, desk: Desk, chain: LocalChain, operator: LocalAccount, tmp_path: Path
) -> Iterator[Served]:
    """One command for both families, with the fee payer's key as Solana's tools, or wallets, write it."""
    fee_payer = json.dumps(list(bytes(desk.operator)))
    if request.param == "base 58":
        fee_payer = str(desk.operator)
    port = find_port()
    with running(
        "facilitator",
        "--rpc", f"solana-devnet={desk.chain.url}",
        "--rpc", f"local={chain.url}",
        "--key-file", write_key(tmp_path, "solana.json", fee_payer),
        "--key-file", write_key(tmp_path, "operator.key", key_of(operator)),
        "--port", str(port),
        TOLLBOOK_STORAGE="memory",
    ) as process:  # fmt: skip
        process.wait_for("serving")
        yield Served(process, f"http://127.0.0.1:{port}")


@pytest.fixture
async def shop(served: Served, desk: Desk, token: str, seller: LocalAccount) -> AsyncIterator[str]:
    """A shop that knows the facilitator by its URL alone."""
    app = FastAPI()

    @app.get("/weather")
    async def weather() -> str:
        return "fine"

    app.add_middleware(
        Paywall,  # pyright: ignore[reportArgumentType]
        payees=[
            Payee("solana-devnet", str(desk.seller.pubkey())),
            Payee(local_chain.NETWORK, seller.address),
        ],
        routes={"GET /weather": PaidRoute("$0.01")},
        facilitator=served.url,
        database_url=desk.database_url,
    )
    async with serve(app) as url:
        yield url


async def test_both_families_are_served_and_the_official_clients_pay(
    served: Served, shop: str, desk: Desk, payer: LocalAccount, token: str
) -> None:
    ready = served.ask("/readyz")
    assert ready.status_code == 200, ready.text
    supported = served.ask("/supported").json()
    assert {kind["network"] for kind in supported["kinds"]} == {NETWORK, local_chain.NETWORK}
    assert supported["signers"]["solana:*"] == [str(desk.operator.pubkey())]
    async with paying_client(desk.payer, desk.chain.url) as client:
        assert (await client.get(shop + "/weather", timeout=30)).status_code == 200
    assert desk.earned() == AMOUNT
    async with paying_evm_client(payer, token) as client:
        assert (await client.get(shop + "/weather", timeout=30)).status_code == 200
    if HAS_NODE_CLIENT:
        answer = await pay_with(
            "pay_solana.mjs", PAY_URL=shop + "/weather", PAY_KEY=str(desk.payer), PAY_NETWORK=NETWORK,
            PAY_ASSET=MINT, PAY_RPC_URL=desk.chain.url,
        )  # fmt: skip
        assert answer["status"] == 200
        assert answer["settled"]["transaction"] == desk.chain.sent[1]
        assert desk.earned() == 2 * AMOUNT
    assert served.process.end(15) == 0
    assert str(desk.operator) not in served.process.read_complaints()


@pytest.mark.parametrize("served_too", ["solana-devnet", "local"])
def test_a_family_without_a_named_recipient_is_not_open_to_everybody(
    desk: Desk, operator: LocalAccount, tmp_path: Path, served_too: str
) -> None:
    """Whoever names the recipients on one family means that nobody else's fees are paid on any."""
    recipient = {"solana-devnet": "0x" + "1" * 40, "local": str(Keypair().pubkey())}[served_too]
    with running(
        "facilitator",
        "--rpc", f"solana-devnet={desk.chain.url}",
        "--rpc", "local=http://127.0.0.1:9",
        "--key-file", write_key(tmp_path, "solana.json", str(desk.operator)),
        "--key-file", write_key(tmp_path, "operator.key", key_of(operator)),
        "--recipient", recipient,
        "--port", str(find_port()),
    ) as process:  # fmt: skip
        assert process.process.wait(60) == 2
        assert "--recipient" in process.read_complaints()


def test_a_family_without_a_key_is_told_at_once(desk: Desk, tmp_path: Path) -> None:
    key = write_key(tmp_path, "operator.key", "0x" + "11" * 32)
    with running(
        "facilitator",
        "--rpc",
        f"solana-devnet={desk.chain.url}",
        "--key-file",
        key,
        "--port",
        str(find_port()),
    ) as process:
        assert process.process.wait(60) == 1
        assert "solana" in process.read_complaints().lower()
