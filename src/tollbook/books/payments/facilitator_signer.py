"""The operator's hand on a chain: its key, and transactions whose fate is never guessed.

The SDK's own signer loses two facts that decide whether money moved: that a node did not answer (it becomes
"invalid payment"), and that a transaction was sent although its answer was lost (it becomes "failed"). An
`Attempt` stands between the SDK and the node for one verify or settle and remembers both.
"""

import os
import re
import stat
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import requests
from eth_account import Account
from eth_account.datastructures import SignedTransaction
from web3 import HTTPProvider, Web3
from web3.exceptions import (
    BadFunctionCallOutput,
    ContractLogicError,
    TransactionIndexingInProgress,
    TransactionNotFound,
    Web3RPCError,
)
from web3.providers.rpc.utils import REQUEST_RETRY_ALLOWLIST, ExceptionRetryConfiguration
from x402.mechanisms.evm.constants import AUTHORIZATION_STATE_ABI
from x402.mechanisms.evm.data_suffix import append_data_suffix
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.evm.types import TransactionReceipt, TypedDataDomain, TypedDataField

from tollbook.core import chains
from tollbook.core.errors import Refusal

KEY_VARIABLE = "TOLLBOOK_FACILITATOR_KEY"
KEY_FILE_BYTES_MAX = 1024
REQUEST_SECONDS_MAX = 5.0
READ_ATTEMPTS_MAX = 3
SEND_ATTEMPTS_MAX = 3  # each with a fresh nonce, where another process took the last one
RECEIPT_SECONDS_MAX = 60.0
POLL_SECONDS_MIN = 0.02
POLL_SECONDS_MAX = 0.5
NONCE_MEMORY_SECONDS = 30  # then the node's count is believed again, lest a dropped transaction block all
GAS_LIMIT = 500_000
WHY_CHARS_MAX = 200

_KEY = re.compile(r"0x[0-9a-f]{64}")
# What nodes say when they did not take a transaction. Everything else may mean that they did.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_NONCE_TAKEN = re.compile(r"nonce too low|replacement transaction underpriced|could not replace", re.I)
_NO_GAS_MONEY = re.compile(r"insufficient funds", re.I)
_NOT_TAKEN = re.compile(
    r"underpriced|intrinsic gas|block gas limit|block base fee|txpool is full|limit exceeded|rate limit", re.I
)


class OperatorKeyUnusable(Refusal):
    """The operator's private key is absent, malformed, or readable by others."""

    reason: ClassVar[str] = "operator-key-unusable"
    status: ClassVar[int] = 500


class NodeFailed(Exception):
    """The node gave no answer, and nothing was sent. Its text never holds the node's URL."""


class NoGasMoney(NodeFailed):
    """The operator's account cannot pay for the transaction; it was not sent."""


def read_operator_key(key_file: Path | None, environment: Mapping[str, str]) -> str:
    """Return the operator's private key, 0x and 64 hex digits, from its file or else the environment.

    The file must be readable by its owner alone. Raises OperatorKeyUnusable, which never shows the key.
    """
    if key_file is None:
        key = environment.get(KEY_VARIABLE, "")
        if not key:
            raise OperatorKeyUnusable(f"There is no operator's key. Set {KEY_VARIABLE}, or name a key file.")
        return check_operator_key(key)
    try:
        with key_file.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(KEY_FILE_BYTES_MAX).decode("ascii", errors="replace")
    except OSError as error:
        raise OperatorKeyUnusable(f"The key file {key_file} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise OperatorKeyUnusable(
            f"The key file {key_file} is open to others (mode {mode:04o}). Run: chmod 600 {key_file}"
        )
    return check_operator_key(key)


def check_operator_key(text: str) -> str:
    """Return a private key as 0x and 64 hex digits. Raises OperatorKeyUnusable, which never shows it."""
    key = "0x" + text.strip().removeprefix("0x").lower()
    try:
        if not _KEY.fullmatch(key):  # eth_account pads a key that lost a digit: another account's
            raise ValueError
        Account.from_key(key)
    except Exception:  # whatever it says may quote the key
        raise OperatorKeyUnusable(
            "The operator's key is no private key. Give 64 hexadecimal digits, with or without 0x."
        ) from None
    return key


def _spell(argument: Any) -> Any:
    """web3 refuses addresses that sellers rightly write in lower case."""
    is_address = isinstance(argument, str) and _ADDRESS.fullmatch(argument) is not None
    return Web3.to_checksum_address(argument) if is_address else argument


class Node(FacilitatorWeb3Signer):
    """One network's node and the operator's key on it, shared by threads: the SDK's signer, hardened."""

    def __init__(self, network: str, rpc_url: str, private_key: str, receipt_seconds_max: float) -> None:
        chains.hush_url_loggers()
        super().__init__(private_key, rpc_url, receipt_seconds_max, GAS_LIMIT)
        # A transaction is sent once: after a resend, "nonce too low" may mean that the first send arrived.
        again = [method for method in REQUEST_RETRY_ALLOWLIST if method != "eth_sendRawTransaction"]
        retry = ExceptionRetryConfiguration(
            errors=(requests.ConnectionError, requests.Timeout, requests.HTTPError),
            retries=READ_ATTEMPTS_MAX,
            method_allowlist=again,
        )
        provider = HTTPProvider(
            rpc_url, {"timeout": REQUEST_SECONDS_MAX}, exception_retry_configuration=retry
        )
        self._w3 = Web3(provider)
        self.network = network
        self.closing = threading.Event()
        self._send_lock = threading.Lock()
        self._next_nonce_at = 0.0
        self._chain_checked = False

    def check_chain(self) -> None:
        """Refuse a node of another chain than its network's, once it answers. Raises NodeFailed."""
        if not self._chain_checked:
            with naming_failures():
                told = f"eip155:{self.get_chain_id()}"
            if told != self.network:
                self._chain_id = None
                raise NodeFailed(f"the node configured for {self.network} is one of {told}")
            self._chain_checked = True

    def send(self, to: str, data: str) -> str:
        """Send a transaction and return its hash, also when it is not sure that it arrived.

        Raises NodeFailed only where it is sure that the node did not take it.
        """
        with self._send_lock:
            for _ in range(SEND_ATTEMPTS_MAX):
                with naming_failures():
                    nonce, signed = self._sign(to, data)
                self._next_nonce = None
                try:
                    self._w3.eth.send_raw_transaction(signed.raw_transaction)
                except Web3RPCError as answer:
                    if _NONCE_TAKEN.search(str(answer)):
                        continue
                    self._refuse(str(answer))
                except Exception:  # noqa: S110 - the answer is lost, not the transaction
                    pass
                else:
                    self._next_nonce, self._next_nonce_at = nonce + 1, time.monotonic()
                return "0x" + bytes(signed.hash).hex()
        raise NodeFailed("another process keeps sending with the operator's key")

    def _refuse(self, answer: str) -> None:
        """Raise for an answer that surely means "not taken"; return for one that may mean anything."""
        if _NO_GAS_MONEY.search(answer):
            raise NoGasMoney(f"the operator {self.address} has no gas money on {self.network}: send it some")
        if _NOT_TAKEN.search(answer):
            raise NodeFailed(f"it refused the transaction: {answer[:WHY_CHARS_MAX]}")

    def _sign(self, to: str, data: str) -> tuple[int, SignedTransaction]:
        nonce = self._w3.eth.get_transaction_count(self._account.address, "pending")
        if self._next_nonce is not None and time.monotonic() - self._next_nonce_at < NONCE_MEMORY_SECONDS:
            nonce = max(nonce, self._next_nonce)  # a second node may not have heard of the last one yet
        transaction = {
            "chainId": int(self.network.partition(":")[2]),
            "to": Web3.to_checksum_address(to),
            "data": data,
            "value": 0,
            "nonce": nonce,
            "gas": self._gas_limit,
            "gasPrice": self._w3.eth.gas_price,
        }
        return nonce, self._account.sign_transaction(cast(Any, transaction))

    def encode_call(
        self, address: str, abi: list[dict[str, Any]], function: str, args: tuple[Any, ...]
    ) -> str:
        """Return the call data of a contract's function, as 0x hex."""
        contract = self._w3.eth.contract(address=Web3.to_checksum_address(address), abi=abi)
        return cast(str, contract.encode_abi(function, args=[_spell(arg) for arg in args]))

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """Return what a contract's function answers; addresses may come in any spelling."""
        return super().read_contract(address, abi, function_name, *map(_spell, args))

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        """Return a transaction's receipt. Raises NodeFailed when it was not mined in time."""
        deadline, pause = time.monotonic() + self._confirmation_timeout_seconds, POLL_SECONDS_MIN
        while True:
            try:
                receipt = self._w3.eth.get_transaction_receipt(cast(Any, tx_hash))
            except (TransactionNotFound, TransactionIndexingInProgress):
                if self.closing.wait(pause) or time.monotonic() > deadline:
                    raise NodeFailed(f"{tx_hash} was not mined while we waited") from None
                pause = min(pause * 1.5, POLL_SECONDS_MAX)
                continue
            return TransactionReceipt(
                status=receipt["status"],
                block_number=receipt["blockNumber"],
                tx_hash=tx_hash,
                logs=list(receipt["logs"]),
            )

    def is_authorization_used(self, token: str, payer: str, nonce: str, block: int | None) -> bool:
        """Return whether an EIP-3009 authorization is spent or cancelled, as of a block or the newest.

        Raises NodeFailed when the node, or this block's state, gives no answer.
        """
        contract = self._w3.eth.contract(
            address=Web3.to_checksum_address(token), abi=cast(Any, AUTHORIZATION_STATE_ABI)
        )
        ask = contract.functions.authorizationState(Web3.to_checksum_address(payer), bytes.fromhex(nonce[2:]))
        try:
            return bool(ask.call(block_identifier="latest" if block is None else block))
        except (ContractLogicError, BadFunctionCallOutput):
            return False  # a token that knows no authorizations has spent none
        except Exception as error:  # not knowing is one answer, whatever the cause
            raise NodeFailed(_describe(error)) from None


class Attempt:
    """The SDK's FacilitatorEvmSigner for one verify or settle; it remembers what the SDK's answer hides.

    `failure`: the node did not answer something, so "invalid" or "failed" would be a guess.
    `transaction`: the hash of what was, or may have been, sent. `receipt`: what became of it.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.failure: NodeFailed | None = None
        self.transaction = ""
        self.receipt: TransactionReceipt | None = None

    @contextmanager
    def _watching(self) -> Generator[None]:
        try:
            with naming_failures():
                yield
        except NodeFailed as failure:
            self.failure = failure
            raise

    def get_addresses(self) -> list[str]:
        """See the SDK."""
        return self.node.get_addresses()

    def get_chain_id(self) -> int:
        """See the SDK."""
        with self._watching():
            return self.node.get_chain_id()

    def get_code(self, address: str) -> bytes:
        """See the SDK."""
        with self._watching():
            return self.node.get_code(address)

    def get_balance(self, address: str, token_address: str) -> int:
        """See the SDK."""
        with self._watching():
            return self.node.get_balance(address, token_address)

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """See the SDK."""
        with self._watching():
            return self.node.read_contract(address, abi, function_name, *args)

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
            return self.node.verify_typed_data(address, domain, types, primary_type, message, signature)

    def write_contract(
        self,
        address: str,
        abi: list[dict[str, Any]],
        function_name: str,
        *args: Any,
        data_suffix: str | None = None,
    ) -> str:
        """See the SDK; but a hash comes back even where the node's answer was lost."""
        data = append_data_suffix(self.node.encode_call(address, abi, function_name, args), data_suffix)
        with self._watching():
            self.transaction = self.node.send(address, data)
        return self.transaction

    def send_transaction(self, to: str, data: bytes) -> str:
        """See the SDK; but a hash comes back even where the node's answer was lost."""
        with self._watching():
            self.transaction = self.node.send(to, "0x" + data.hex())
        return self.transaction

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        """See the SDK."""
        self.transaction = tx_hash
        with self._watching():
            self.receipt = self.node.wait_for_transaction_receipt(tx_hash)
        return self.receipt


@contextmanager
def naming_failures() -> Generator[None]:
    """Turn what web3 and its HTTP library raise into NodeFailed; let the chain's own answers pass.

    A revert is an answer. The others' texts hold the node's URL, and so its key: they end here.
    """
    try:
        yield
    except (NodeFailed, ContractLogicError, BadFunctionCallOutput):
        raise
    except Exception as error:
        if isinstance(error, Web3RPCError) and "revert" in str(error).lower():
            raise
        raise NodeFailed(_describe(error)) from None


def _describe(error: Exception) -> str:
    """Return what went wrong without the URL that HTTP libraries put into their messages."""
    if isinstance(error, Web3RPCError):
        return f"it answered: {str(error)[:WHY_CHARS_MAX]}"
    return f"it gave no answer ({type(error).__name__})"
