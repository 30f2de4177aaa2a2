"""The local chain: anvil as a child process, with the test token deployed on it."""

import ctypes
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self, cast

import httpx
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_signature_to_4byte_selector
from eth_utils.address import to_checksum_address

from tollbook.core.errors import Refusal

CHAIN_ID = 31337
NETWORK = f"eip155:{CHAIN_ID}"
START_SECONDS_MAX = 20
STOP_SECONDS_MAX = 10
REQUEST_SECONDS_MAX = 10
STATE_INTERVAL_SECONDS = 15  # the whole file is written each time
STATES_MAX = 256  # blocks whose state anvil keeps
BLOCKS_MAX = 1000  # blocks whose transactions and receipts anvil keeps: its state file would grow for ever
OUTPUT_BYTES_MAX = 64 * 1024
TOKEN_NAME = "USD Coin"  # noqa: S105 - the token's name, not a secret
TOKEN_SYMBOL = "USDC"  # noqa: S105
TOKEN_VERSION = "2"  # noqa: S105
TOKEN_DECIMALS = 6
GAS_MONEY_WEI = 10**19
# A contract's address follows from its creator and the creator's nonce. This one is what anvil's first
# account creates first, on every fresh chain: so a restarted chain finds its token without any notes.
TOKEN_ADDRESS = "0x5fbdb2315678afecb367f032d93f642f64180aa3"  # noqa: S105
DEPLOYER = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
ANVIL_PACKAGES = {
    ("Linux", "x86_64"): "anvil-linux-amd64",
    ("Linux", "aarch64"): "anvil-linux-arm64",
    ("Darwin", "x86_64"): "anvil-darwin-amd64",
    ("Darwin", "arm64"): "anvil-darwin-arm64",
}


class LocalChainMissing(Refusal):
    """The program that plays the chain is not installed."""

    reason: ClassVar[str] = "local-chain-missing"
    status: ClassVar[int] = 503

    def __init__(self) -> None:
        super().__init__(
            "anvil, which plays the local chain, is not installed. Run `npm ci` in Tollbook's folder "
            "(Node 18 or newer), or put `anvil` from Foundry on PATH. Everything but the local chain, "
            "the demonstration and their tests works without it."
        )


class LocalChainFailed(Refusal):
    """The local chain did not start, or did not do what it was told."""

    reason: ClassVar[str] = "local-chain-failed"
    status: ClassVar[int] = 503


def find_anvil(start: Path | None = None) -> Path:
    """Return the path of the anvil binary: the pinned one of `npm ci`, else the one on PATH.

    `start` is the folder from which node_modules is looked for, upwards; by default the working
    folder and then Tollbook's own. Raises LocalChainMissing.
    """
    package = ANVIL_PACKAGES.get((platform.system(), platform.machine()))
    folders = [start] if start else [Path.cwd(), Path(__file__).resolve().parent]
    for folder in folders if package else []:
        for parent in (folder, *folder.parents):
            binary = parent / "node_modules" / "@foundry-rs" / str(package) / "bin" / "anvil"
            if os.access(binary, os.X_OK):
                return binary
    on_path = shutil.which("anvil")
    if on_path is None:
        raise LocalChainMissing
    return Path(on_path)


@dataclass(slots=True)
class LocalChain:
    """A running anvil. Chain id 31337, a block per transaction unless a block time was given."""

    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(repr=False)

    @classmethod
    def start(cls, state_file: Path | None = None, block_time: int | None = None, port: int = 0) -> Self:
        """Start anvil on 127.0.0.1 and return when it listens.

        `state_file` is read when it exists, and written every few seconds and at the end, so that a chain
        survives a restart. `block_time` is in seconds. Port 0 takes a free one. The child ends when the
        thread that started it ends, however that happens (Linux), so start it from a thread that stays.
        Raises LocalChainMissing, LocalChainFailed.
        """
        arguments = [str(find_anvil()), "--port", str(port), "--chain-id", str(CHAIN_ID), "--no-cors"]
        arguments += ["--prune-history", str(STATES_MAX), "--transaction-block-keeper", str(BLOCKS_MAX)]
        if state_file is not None:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            arguments += ["--state", str(state_file), "--state-interval", str(STATE_INTERVAL_SECONDS)]
        if block_time is not None:
            arguments += ["--block-time", str(block_time)]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone: the chain must outlive what still uses it
            preexec_fn=_die_with_parent(),
        )
        try:
            address = _read_address(process)
        except BaseException as failure:
            process.kill()
            process.communicate()  # reaps it and closes its pipe
            if isinstance(failure, LocalChainFailed) and "--state" in str(failure):
                advice = f"Remove {state_file} to begin with an empty chain."
                raise LocalChainFailed(f"{failure} {advice}") from None
            raise
        # trust_env: a proxy set for the outside world is not for 127.0.0.1
        client = httpx.Client(base_url=f"http://{address}", timeout=REQUEST_SECONDS_MAX, trust_env=False)
        return cls(f"http://{address}", process, client)

    def stop(self) -> None:
        """Stop the chain, writing its state file if it has one. Stopping twice is no error."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, method: str, *params: object) -> Any:
        """Return the result of one JSON-RPC request to the chain. Raises LocalChainFailed."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            answer = self.client.post("/", json=request).json()
        except (httpx.HTTPError, ValueError) as error:
            raise LocalChainFailed(f"The local chain did not answer {method}: {error!r}") from error
        if "error" in answer:
            raise LocalChainFailed(f"The local chain refused {method}: {answer['error']['message']}")
        return answer["result"]

    def send(self, transaction: dict[str, str]) -> dict[str, Any]:
        """Send a transaction of one of the chain's own accounts and return its receipt."""
        transaction_hash = cast(str, self.call("eth_sendTransaction", transaction))
        deadline = time.monotonic() + REQUEST_SECONDS_MAX
        while (receipt := self.call("eth_getTransactionReceipt", transaction_hash)) is None:
            if time.monotonic() > deadline:
                raise LocalChainFailed(f"The local chain did not mine {transaction_hash} in time.")
            time.sleep(0.05)
        if int(receipt["status"], 16) != 1:
            raise LocalChainFailed(f"The local chain reverted {transaction_hash}.")
        return receipt

    def ensure_token(self) -> str:
        """Return the address of the test token, after deploying it if this chain has none yet."""
        if self.call("eth_getCode", TOKEN_ADDRESS, "latest") != "0x":
            return TOKEN_ADDRESS
        arguments = encode(["string", "string", "string"], [TOKEN_NAME, TOKEN_SYMBOL, TOKEN_VERSION])
        code = read_token_artifact()["bytecode"] + arguments.hex()
        created = cast(str, self.send({"from": DEPLOYER, "data": code})["contractAddress"])
        if created.lower() != TOKEN_ADDRESS:
            raise LocalChainFailed(
                f"The token came to be at {created}, not at {TOKEN_ADDRESS}: this chain's state belongs to "
                "something else. Remove its state file and start again."
            )
        return TOKEN_ADDRESS

    def mint(self, receiver: str, amount: int) -> None:
        """Give an address test tokens, in minor units (6 decimals)."""
        selector = function_signature_to_4byte_selector("mint(address,uint256)")
        data = selector + encode(["address", "uint256"], [to_checksum_address(receiver), amount])
        self.send({"from": DEPLOYER, "to": self.ensure_token(), "data": "0x" + data.hex()})

    def set_gas_money(self, address: str, wei: int = GAS_MONEY_WEI) -> None:
        """Make an address own exactly so much of the chain's coin, in wei."""
        self.call("anvil_setBalance", to_checksum_address(address), hex(wei))

    def read_balance(self, address: str) -> int:
        """Return an address's test tokens, in minor units."""
        data = function_signature_to_4byte_selector("balanceOf(address)")
        data += encode(["address"], [to_checksum_address(address)])
        return int(self.call("eth_call", {"to": TOKEN_ADDRESS, "data": "0x" + data.hex()}, "latest"), 16)

    def make_account(self, amount: int = 0, wei: int = 0) -> LocalAccount:
        """Return a fresh account with a random key, owning so many minor units of the token and wei."""
        account: LocalAccount = Account.create()
        if amount:
            self.mint(account.address, amount)
        if wei:
            self.set_gas_money(account.address, wei)
        return account


def read_token_artifact() -> dict[str, Any]:
    """Return the compiled test token: contract, compiler, source_sha256, abi, bytecode."""
    return json.loads(files("tollbook.core").joinpath("contracts/TestUSD.json").read_text())


def _read_address(process: subprocess.Popen[bytes]) -> str:
    """Wait for the line that says where anvil listens; keep reading afterwards so it never blocks."""
    assert process.stdout is not None
    output, deadline = b"", time.monotonic() + START_SECONDS_MAX
    marker = b"Listening on "
    while time.monotonic() < deadline and len(output) < OUTPUT_BYTES_MAX:
        if not select.select([process.stdout], [], [], 0.2)[0]:
            continue
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            said = output.decode(errors="replace").strip() or "nothing"
            raise LocalChainFailed(f"The local chain ended before it listened. anvil said: {said}")
        output += chunk
        line = output.partition(marker)[2].split(b"\n")[0]
        if line and line.rpartition(b":")[2].strip().isdigit():
            threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            return line.decode().strip()
    raise LocalChainFailed(f"anvil did not listen within {START_SECONDS_MAX} seconds.")


def _drain(stream: IO[bytes]) -> None:
    with stream:
        while stream.read(4096):
            pass


def _die_with_parent() -> Callable[[], None] | None:
    """Return what the child runs before it becomes anvil: the kernel ends it when its parent is gone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()
    set_death_signal = 1  # PR_SET_PDEATHSIG

    def run() -> None:
        libc.prctl(set_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return run
