"""The signer that the SDK's schemes are given: their threads ask, the event loop answers.

The seam for every scheme that is not on our own fast path: an `Attempt` is the SDK's FacilitatorEvmSigner
for one verify or settle. What it reads goes over the facilitator's node, what it writes goes through the
lanes under the settlement's purpose, so it is broadcast once however often it is asked. The SDK turns a node
that did not answer into "invalid", and a transaction whose answer was lost into "failed"; the Attempt
remembers both, and the facilitator asks it before it believes the SDK's answer.
"""

import asyncio
import json
import re
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from web3 import Web3
from web3._utils.encoding import FriendlyJsonSerde, Web3JsonEncoder
from web3.exceptions import BadFunctionCallOutput, ContractLogicError
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse
from x402.mechanisms.evm.data_suffix import append_data_suffix
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.evm.types import TransactionReceipt, TypedDataDomain, TypedDataField

from tollbook.books.payments.facilitator.node import REVERT, CallReverted, Node
from tollbook.core.chains import Receipt

DEPLOYMENT = "/deployment"

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_Result = TypeVar("_Result")


class Bridge(BaseProvider):
    """web3's way to our node: a thread asks, the event loop answers."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._node = node
        self._loop = loop

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """See web3. A revert is an answer; NodeFailed passes through."""
        plain = json.loads(FriendlyJsonSerde().json_encode(params, Web3JsonEncoder))
        try:
            result = asyncio.run_coroutine_threadsafe(self._node.ask(method, *plain), self._loop).result()
        except CallReverted as revert:
            error = {"code": REVERT, "message": str(revert)}
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "error": error})
        return {"jsonrpc": "2.0", "id": 1, "result": result}


class Reader(FacilitatorWeb3Signer):
    """The SDK's signer for what it reads and checks: it asks our node, and sends nothing."""

    def __init__(
        self, node: Node, loop: asyncio.AbstractEventLoop, key: str, addresses: Sequence[str]
    ) -> None:
        super().__init__(key, "http://127.0.0.1")  # the address is never asked: the next line replaces it
        self._w3 = Web3(Bridge(node, loop))
        self._addresses = list(addresses)

    def get_addresses(self) -> list[str]:
        """All the operators', with checksums."""
        return self._addresses

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """Return what a contract's function answers; addresses may come in any spelling."""
        return super().read_contract(address, abi, function_name, *map(_spell, args))

    def encode_call(
        self, address: str, abi: list[dict[str, Any]], function: str, args: tuple[Any, ...]
    ) -> str:
        """Return the call data of a contract's function, as 0x hex."""
        contract = self._w3.eth.contract(address=Web3.to_checksum_address(address), abi=abi)
        return cast(str, contract.encode_abi(function, args=[_spell(arg) for arg in args]))


class Sender(Protocol):
    """What an Attempt sends through, from the event loop."""

    async def send(self, to: str, data: bytes, step: str) -> str:
        """Have a call broadcast once, durably, and return its hash. `step` names what is not the payment."""
        ...

    async def see(self, transaction_hash: str) -> Receipt:
        """Return a transaction's receipt once it is mined as deep as is wanted."""
        ...


class Attempt:
    """The SDK's FacilitatorEvmSigner for one verify or settle; it remembers what the SDK's answer hides.

    `failure`: something was not answered or not sent, so "invalid" or "failed" would be a guess.
    `transaction`: the hash of what was, or may have been, sent. `receipt`: what became of it.
    """

    def __init__(self, reader: Reader, loop: asyncio.AbstractEventLoop, sender: Sender | None = None) -> None:
        self._reader = reader
        self._loop = loop
        self._sender = sender
        self.failure: Exception | None = None
        self.transaction = ""
        self.receipt: Receipt | None = None

    @contextmanager
    def _watching(self) -> Generator[None]:
        try:
            yield
        except (ContractLogicError, BadFunctionCallOutput):
            raise  # the chain's own answers
        except Exception as error:
            self.failure = error
            raise

    def get_addresses(self) -> list[str]:
        """See the SDK."""
        return self._reader.get_addresses()

    def get_chain_id(self) -> int:
        """See the SDK."""
        with self._watching():
            return self._reader.get_chain_id()

    def get_code(self, address: str) -> bytes:
        """See the SDK."""
        with self._watching():
            return self._reader.get_code(address)

    def get_balance(self, address: str, token_address: str) -> int:
        """See the SDK."""
        with self._watching():
            return self._reader.get_balance(address, token_address)

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """See the SDK."""
        with self._watching():
            return self._reader.read_contract(address, abi, function_name, *args)

    def verify_typed_data(
        self,
        address: str,
        domain: TypedDataDomain,
        types: dict[str, list[TypedDataField]],
        primary_type: str,
        message: dict[str, Any],
        signature: bytes,
    ) -> bool:
        """See the SDK."""
        with self._watching():
            return self._reader.verify_typed_data(address, domain, types, primary_type, message, signature)

    def write_contract(
        self,
        address: str,
        abi: list[dict[str, Any]],
        function_name: str,
        *args: Any,
        data_suffix: str | None = None,
    ) -> str:
        """See the SDK; but what is sent is on disk before, and is sent once, whoever asks how often."""
        data = append_data_suffix(self._reader.encode_call(address, abi, function_name, args), data_suffix)
        return self._send(address, bytes.fromhex(data[2:]), "")

    def send_transaction(self, to: str, data: bytes) -> str:
        """See the SDK and write_contract. It deploys smart wallets by this."""
        return self._send(to, data, DEPLOYMENT)

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        """See the SDK."""
        with self._watching():
            receipt = self._run(self._expect_sender().see(tx_hash))
        if tx_hash == self.transaction:
            self.receipt = receipt
        logs = [
            {"address": log.address, "topics": list(log.topics), "data": log.data, "logIndex": log.index}
            for log in receipt.logs
        ]
        return TransactionReceipt(int(receipt.succeeded), receipt.block_number, tx_hash, logs)

    def _send(self, to: str, data: bytes, step: str) -> str:
        with self._watching():
            sent = self._run(self._expect_sender().send(to.lower(), data, step))
        if not step:
            self.transaction = sent
        return sent

    def _expect_sender(self) -> Sender:
        assert self._sender is not None, "verifying sends nothing"
        return self._sender

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class Pending:
    """The SDK's PendingSettlementStore over the lanes: what they already have, the SDK waits for anew."""

    def __init__(self, transaction_hash: str | None) -> None:
        self._hash = transaction_hash

    def get(self, key: str) -> str | None:
        """The transaction that settles this payment already, if there is one."""
        return self._hash

    def set(self, key: str, tx_hash: str) -> None:
        """Nothing to do: the lanes wrote it down before it was sent."""

    def delete(self, key: str) -> None:
        """Nothing to do: the lanes keep it."""


def _spell(argument: Any) -> Any:
    """web3 refuses addresses that sellers rightly write in lower case."""
    is_address = isinstance(argument, str) and _ADDRESS.fullmatch(argument) is not None
    return Web3.to_checksum_address(argument) if is_address else argument
