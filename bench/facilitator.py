"""The facilitator against the bare SDK's, over HTTP on one chain; signature checks against bare ecrecover."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coincurve import PrivateKey, PublicKey
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_hash.auto import keccak
from starlette.applications import Starlette
from x402.facilitator import x402FacilitatorSync
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.evm.types import ExactEIP3009Payload
from x402.mechanisms.evm.verify import verify_eoa_signature
from x402.schemas import VerifyRequest

from tollbook import embedded
from tollbook.books.payments.facilitator import eip3009
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.core.local_chain import NETWORK, TOKEN_NAME, TOKEN_VERSION, LocalChain
from tollbook.migrate import Folder, apply

SOURCE = Path(__file__).parents[1] / "src" / "tollbook"
ROUNDS = 5
VERIFICATIONS = {1: 100, 32: 600}  # a round, by clients
SETTLEMENTS = {1: 60, 32: 400}
CHECKS = 2000
AMOUNT = 1_000
GOALS = {"verify": 1.0, "settle": 3.0}
GOAL_CLIENTS = 32
GOAL_SIGNATURES = 1.2
SUBJECTS = ("bare SDK", "Tollbook")
OK = 200


def make_app() -> Any:
    """The app that uvicorn serves in the child process, chosen by BENCH_APP."""
    if os.environ["BENCH_APP"] == "bare SDK":
        return make_bare_app(os.environ["BENCH_NODE"], os.environ["BENCH_KEY"])
    facilitator = InProcessFacilitator(
        {NETWORK: os.environ["BENCH_NODE"]}, os.environ["BENCH_KEY"], os.environ["BENCH_DATABASE_URL"]
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        await facilitator.open()
        yield
        await facilitator.aclose()

    app = facilitator_app(facilitator)
    app.router.lifespan_context = lifespan
    return app


def make_bare_app(node: str, key: str) -> Any:
    """The official SDK's facilitator at its best: synchronous, in a pool of threads, with coincurve."""
    from fastapi import FastAPI

    sdk = x402FacilitatorSync()
    sdk.register([NETWORK], ExactEvmScheme(FacilitatorWeb3Signer(key, node)))
    app = FastAPI()

    @app.post("/verify")
    def verify(body: dict[str, Any]) -> Any:  # pyright: ignore[reportUnusedFunction]
        asked = VerifyRequest.model_validate(body)
        answer = sdk.verify(asked.payment_payload, asked.payment_requirements)
        return answer.model_dump(by_alias=True, exclude_none=True)

    @app.post("/settle")
    def settle(body: dict[str, Any]) -> Any:  # pyright: ignore[reportUnusedFunction]
        asked = VerifyRequest.model_validate(body)
        answer = sdk.settle(asked.payment_payload, asked.payment_requirements)
        return answer.model_dump(by_alias=True, exclude_none=True)

    return app


@dataclass(frozen=True, slots=True)
class Desk:
    """Who pays whom, in what."""

    token: str
    payer: LocalAccount
    seller: LocalAccount

    def sign(self) -> bytes:
        """A facilitator request's body with a fresh payment."""
        now, nonce = int(time.time()), "0x" + secrets.token_hex(32)
        fields = {
            "from": self.payer.address, "to": self.seller.address, "value": str(AMOUNT),
            "validAfter": "0", "validBefore": str(now + 3600), "nonce": nonce,
        }  # fmt: skip
        payload = {"authorization": fields, "signature": "0x" + "00" * 65}
        domain = eip3009.hash_domain(NETWORK, self.token, TOKEN_NAME, TOKEN_VERSION)
        digest = eip3009.hash_authorization(eip3009.read(payload), domain)
        key = PrivateKey(bytes(self.payer.key))
        signature = key.sign_recoverable(digest, hasher=None)  # pyright: ignore[reportUnknownMemberType]
        payload["signature"] = "0x" + signature[:64].hex() + f"{signature[64] + 27:02x}"
        requirements = {
            "scheme": "exact", "network": NETWORK, "asset": self.token, "amount": str(AMOUNT),
            "payTo": self.seller.address, "maxTimeoutSeconds": 3600,
            "extra": {"name": TOKEN_NAME, "version": TOKEN_VERSION},
        }  # fmt: skip
        body = {
            "x402Version": 2,
            "paymentPayload": {"x402Version": 2, "payload": payload, "accepted": requirements},
            "paymentRequirements": requirements,
        }
        return json.dumps(body).encode()


@contextlib.contextmanager
def serving(subject: str, chain: LocalChain, database_url: str) -> Generator[int]:
    """Yield the port of a facilitator in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    operator = chain.make_account(wei=10**21)
    environment = os.environ | {
        "BENCH_APP": subject, "BENCH_NODE": chain.url, "BENCH_KEY": "0x" + operator.key.hex(),
        "BENCH_DATABASE_URL": database_url,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "uvicorn", "facilitator:make_app", "--factory",
        "--app-dir", str(Path(__file__).parent), "--port", str(port),
        "--log-level", "error", "--no-access-log",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)


@dataclass(frozen=True, slots=True)
class Run:
    """Requests a second, and how long each took, in milliseconds."""

    per_second: float
    took: Sequence[float]


async def load(port: int, path: str, bodies: Sequence[bytes], clients: int) -> Run:
    """Ask once with every body, by so many clients in a closed loop; every answer must be a yes."""
    waiting, took = list(bodies), list[float]()
    started = time.perf_counter()
    await asyncio.gather(*(_ask(port, path, waiting, took) for _ in range(clients)))
    return Run(len(bodies) / (time.perf_counter() - started), took)


async def _ask(port: int, path: str, waiting: list[bytes], took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while waiting:
        body = waiting.pop()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = await reader.readuntil(b"\r\n\r\n")
        length = int(answered.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        took.append((time.perf_counter() - started) * 1000)
        told = json.loads(answer)
        if not answered.startswith(b"HTTP/1.1 200") or not (told.get("isValid") or told.get("success")):
            raise RuntimeError(f"{path}: {answer.decode()[:500]}")
    writer.close()


def compare(desk: Desk, ports: dict[str, int], path: str, counts: dict[int, int]) -> None:
    """Print both facilitators' figures, and the median ratio of rounds that took turns."""
    for clients, count in counts.items():
        runs: dict[str, list[Run]] = {subject: [] for subject in SUBJECTS}
        for number in range(ROUNDS + 1):
            for subject in SUBJECTS:
                run = asyncio.run(load(ports[subject], path, [desk.sign() for _ in range(count)], clients))
                if number:  # the first round warms up
                    runs[subject].append(run)
        for subject in SUBJECTS:
            took = sorted(each for run in runs[subject] for each in run.took)
            print(
                f"{path:8} {clients:3} clients  {subject:9} "
                f"{statistics.median(run.per_second for run in runs[subject]):7.0f}/s  "
                f"p50 {took[len(took) // 2]:7.1f} ms  p99 {took[len(took) * 99 // 100]:7.1f} ms"
            )
        bare, ours = runs["bare SDK"], runs["Tollbook"]
        ratio = statistics.median(b.per_second / a.per_second for a, b in zip(bare, ours, strict=True))
        goal = GOALS[path[1:]] if clients == GOAL_CLIENTS else None
        print(json.dumps({"path": path, "clients": clients, "ratio": round(ratio, 2), "goal": goal}))


def time_each(work: Callable[[], object], count: int) -> float:
    """Return how often a second the work is done, alone on a core."""
    started = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - started)


def compare_signatures(desk: Desk) -> None:
    """Print checks a second of one signature: by hand, by the SDK, and the bare hashing and recovery."""
    payload: dict[str, Any] = json.loads(desk.sign())["paymentPayload"]["payload"]
    payer = desk.payer.address.lower()
    signature = bytes.fromhex(payload["signature"][2:])
    recoverable, words = signature[:64] + bytes([signature[64] - 27]), bytes(224)

    def check_raw() -> object:
        digest = keccak(keccak(words) + words[:34])
        key = PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
        return keccak(key.format(compressed=False)[1:])

    def check_ours() -> None:
        domain = eip3009.hash_domain(NETWORK, desk.token, TOKEN_NAME, TOKEN_VERSION)
        authorization = eip3009.read(payload)
        digest = eip3009.hash_authorization(authorization, domain)
        assert eip3009.recover_signer(digest, authorization.signature) == payer

    def check_sdk() -> None:
        read = ExactEIP3009Payload.from_dict(payload)
        digest = hash_eip3009_authorization(read.authorization, 31337, desk.token, TOKEN_NAME, TOKEN_VERSION)
        assert verify_eoa_signature(digest, signature, desk.payer.address)

    rates: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        rates.append(
            (time_each(check_raw, CHECKS), time_each(check_ours, CHECKS), time_each(check_sdk, CHECKS // 4))
        )
    raw, ours, sdk = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(each[0] / each[1] for each in rates)
    print(f"signature checks a second on one core: bare {raw:.0f}, Tollbook {ours:.0f}, SDK {sdk:.0f}")
    print(json.dumps({"bare_to_tollbook": round(ratio, 2), "goal": GOAL_SIGNATURES}))


def main() -> None:
    """Print the figures."""
    with LocalChain.start() as chain, embedded.throwaway() as server:
        apply(server.url(), [Folder("core", SOURCE / "core/migrations")], backup=False)
        desk = Desk(chain.ensure_token(), chain.make_account(amount=10**15), Account.create())
        compare_signatures(desk)
        with contextlib.ExitStack() as stack:
            ports = {
                subject: stack.enter_context(serving(subject, chain, server.url())) for subject in SUBJECTS
            }
            compare(desk, ports, "/verify", VERIFICATIONS)
            compare(desk, ports, "/settle", SETTLEMENTS)


if __name__ == "__main__":
    main()
