"""What Tollbook knows of chains: the networks, how to ask a node, how to read ERC-20 logs.

EVM addresses and hashes are kept in lower case everywhere; `normalize_address` and `normalize_hash` are the
only ways in. Solana's addresses are base 58, where case has a meaning. `normalize_address_on` knows both.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, NoReturn, Self, cast
from urllib.parse import urlsplit

import httpx
from eth_utils.address import is_checksum_address
from solders.pubkey import Pubkey
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from x402.mechanisms.evm.default_assets import DEFAULT_ASSETS
from x402.mechanisms.svm.constants import V1_TO_V2_NETWORK_MAP
from x402.mechanisms.svm.default_assets import get_default_asset

from tollbook.core import local_chain
from tollbook.core.errors import Refusal

ATTEMPTS_MAX = 3
WAIT_SECONDS_MAX = 1.0
REQUEST_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024
MESSAGE_CHARS_MAX = 200  # of what a node says, in our own messages
CONFIRMATIONS_DEFAULT = 12
GAS_GWEI_MAX, TIP_GWEI_MAX = 500, 50  # for a network of which nothing more is known
SOLANA_FINAL = 32  # confirmations after which a Solana slot is rooted
SOLANA_FAMILY = "solana:"
OK = 200
TOO_MANY_REQUESTS = 429
LIMIT_EXCEEDED = -32005  # JSON-RPC, EIP-1474: the node's own 429

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
AUTHORIZATION_CANCELED_TOPIC = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
AUTHORIZATION_USED_TOPIC = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
ADDRESS_PADDING = "0x" + "0" * 24

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
_BASE58 = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}")
# These write whole URLs to their logs, and an RPC provider's URL holds the account's key.
_LOGGERS_OF_URLS = ("httpx", "urllib3.connectionpool", "web3")


class MalformedAddress(Refusal):
    """A text is not an address of its network."""

    reason: ClassVar[str] = "malformed-address"
    status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 2


class MalformedHash(Refusal):
    """A text is not an EVM transaction or block hash."""

    reason: ClassVar[str] = "malformed-hash"
    status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 2


class UnknownNetwork(Refusal):
    """A network that Tollbook does not know, or that has no RPC address configured."""

    reason: ClassVar[str] = "unknown-network"
    status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 2


class ChainUnreachable(Refusal):
    """No usable answer came from the chain's node. Nothing is known; asking again later may help."""

    reason: ClassVar[str] = "chain-unreachable"
    status: ClassVar[int] = 503

    def __init__(self, network: str, url: str, why: str) -> None:
        super().__init__(
            f"The node of {network} at {hide_credentials(url)} gave no usable answer: {why}. "
            "Check the RPC URL and that the node runs, then try again."
        )


class ChainRefused(Refusal):
    """The node understood the request and said no; for `call`, this is a revert."""

    reason: ClassVar[str] = "chain-refused"
    status: ClassVar[int] = 502

    def __init__(self, network: str, method: str, message: str, code: int | None = None) -> None:
        self.code = code
        super().__init__(f"The node of {network} refused {method}: {message[:MESSAGE_CHARS_MAX]}")


class _Transient(Exception):
    """A failed attempt that another attempt may mend."""


@dataclass(frozen=True, slots=True)
class Token:
    """An ERC-20 token, or a mint on Solana.

    `name` and `version` are those of the EIP-712 domain, which payers sign; Solana knows none.
    """

    address: str
    symbol: str
    decimals: int
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Network:
    """A network. `confirmations` counts the block that holds a transaction as the first.

    More than `gas_gwei_max` is not offered for a unit of gas, and `tip_gwei_max` of it as a tip, unless an
    operator says so: a node that is wrong, or greedy, must not empty the account. 0 where it has no gas.
    """

    id: str
    name: str
    confirmations: int
    usdc: Token | None
    gas_gwei_max: int = 0
    tip_gwei_max: int = 0

    @property
    def is_solana(self) -> bool:
        """Whether it is Solana, or else an EVM network."""
        return is_solana(self.id)


@dataclass(frozen=True, slots=True)
class Log:
    """One event of a transaction: lower-case hex, `data` with its 0x."""

    address: str
    topics: tuple[str, ...]
    data: str
    index: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a mined transaction."""

    transaction_hash: str
    block_number: int
    block_hash: str
    succeeded: bool
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A block's head: its number, hash and time (UTC)."""

    number: int
    hash: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Transfer:
    """An ERC-20 Transfer: `amount` in the token's minor units."""

    token: str
    sender: str
    receiver: str
    amount: int
    log_index: int


@dataclass(frozen=True, slots=True)
class AuthorizationUsed:
    """An EIP-3009 authorization that was spent: its signer and its nonce."""

    token: str
    authorizer: str
    nonce: str
    log_index: int


def normalize_address(text: str) -> str:
    """Return an EVM address in lower case.

    Mixed case must be the checksum of EIP-55, so that a mistyped address is refused: MalformedAddress.
    """
    if not _ADDRESS.fullmatch(text):
        raise MalformedAddress(f"{text[:66]!r} is not an address. Give 0x and 40 hexadecimal digits.")
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise MalformedAddress(f"{text} fails its own checksum. Copy the address again, whole.")
    return text.lower()


def is_solana(network_id: str) -> bool:
    """Whether a CAIP-2 id is one of Solana's."""
    return network_id.startswith(SOLANA_FAMILY)


def normalize_address_on(network_id: str, text: str) -> str:
    """Return an address in the one spelling that its network's books use. Raises MalformedAddress."""
    if not is_solana(network_id):
        return normalize_address(text)
    try:
        if not _BASE58.fullmatch(text):
            raise ValueError(text)
        return str(Pubkey.from_string(text))
    except ValueError:
        raise MalformedAddress(
            f"{text[:66]!r} is not a Solana address. Give the base 58 text of its 32 bytes."
        ) from None


def normalize_hash(text: str) -> str:
    """Return an EVM transaction or block hash in lower case. Raises MalformedHash."""
    if not _HASH.fullmatch(text):
        raise MalformedHash(f"{text[:90]!r} is not a hash. Give 0x and 64 hexadecimal digits.")
    return text.lower()


def hide_credentials(url: str) -> str:
    """Return a URL's scheme, host and port alone: user, password, path and query may be secrets."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an unreadable URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def hush_url_loggers() -> None:
    """Keep the HTTP libraries from writing the URLs they ask, which hold keys, into the logs."""
    for name in _LOGGERS_OF_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)


def _find_usdc(network_id: str) -> Token | None:
    """Return the network's USDC as the x402 SDK lists it, where it can be paid with EIP-3009."""
    for asset in DEFAULT_ASSETS.get(network_id, ()):
        if asset["symbol"] == "USDC" and asset.get("asset_transfer_method", "eip3009") == "eip3009":
            address = asset["asset"].lower()
            return Token(address, "USDC", asset["decimals"], asset["name"], asset["version"])
    return None


def _find_solana_usdc(network_id: str) -> Token:
    asset = get_default_asset(network_id, "USDC")
    return Token(asset["asset"], asset["symbol"], asset["decimals"], name="", version="")


_EVM_TRAITS = {  # name, confirmations, most gwei for a unit of gas, most gwei of it as a tip
    "eip155:1": ("ethereum", 12, 300, 10),
    "eip155:8453": ("base", 6, 5, 1),
    "eip155:84532": ("base-sepolia", 6, 50, 5),
    "eip155:137": ("polygon", 128, 2_000, 500),  # nodes there want a tip of 25 at least
    "eip155:42161": ("arbitrum", 20, 5, 1),
    "eip155:421614": ("arbitrum-sepolia", 20, 50, 5),
    "eip155:43114": ("avalanche", 12, 300, 20),
}
_LOCAL = Network(
    local_chain.NETWORK,
    "local",
    1,
    Token(
        local_chain.TOKEN_ADDRESS,
        local_chain.TOKEN_SYMBOL,
        local_chain.TOKEN_DECIMALS,
        local_chain.TOKEN_NAME,
        local_chain.TOKEN_VERSION,
    ),
    GAS_GWEI_MAX,
    TIP_GWEI_MAX,
)
_SOLANA = {
    key: Network(key, name, SOLANA_FINAL, _find_solana_usdc(key))
    for name, key in V1_TO_V2_NETWORK_MAP.items()
}


def _describe_evm(key: str) -> Network:
    unknown = (key, CONFIRMATIONS_DEFAULT, GAS_GWEI_MAX, TIP_GWEI_MAX)
    name, confirmations, gas_gwei_max, tip_gwei_max = _EVM_TRAITS.get(key, unknown)
    return Network(key, name, confirmations, _find_usdc(key), gas_gwei_max, tip_gwei_max)


_EVM = {key: _describe_evm(key) for key in DEFAULT_ASSETS}
NETWORKS: Mapping[str, Network] = {_LOCAL.id: _LOCAL} | _EVM | _SOLANA


def find_network(name: str) -> Network:
    """Return the network of a CAIP-2 id (`eip155:8453`) or a name (`base`). Raises UnknownNetwork."""
    for network in NETWORKS.values():
        if name in (network.id, network.name):
            return network
    known = ", ".join(network.name for network in NETWORKS.values() if network.name != network.id)
    raise UnknownNetwork(f"{name[:90]!r} is no known network. Give a CAIP-2 id or one of: {known}.")


class JsonRpc:
    """A network's node, asked over JSON-RPC. Close it after use, or use it as `async with`."""

    def __init__(self, network: str, url: str) -> None:
        hush_url_loggers()
        self.network = network
        self._url = url
        self._client = httpx.AsyncClient(timeout=REQUEST_SECONDS_MAX)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.network!r}, {hide_credentials(self._url)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to the node."""
        await self._client.aclose()

    async def ask(self, method: str, *params: object, attempts_max: int = ATTEMPTS_MAX) -> Any:
        """Return a request's result, asking up to `attempts_max` times.

        Raises ChainUnreachable when no attempt got an answer, ChainRefused when the node said no.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts_max),
            wait=wait_random_exponential(multiplier=0.1, max=WAIT_SECONDS_MAX),
            retry=retry_if_exception_type(_Transient),
            reraise=True,
        )
        try:
            return await retrying(self._ask, method, params)
        except _Transient as failure:
            # from None: the HTTP library's own exceptions carry the whole URL.
            raise ChainUnreachable(self.network, self._url, str(failure)) from None

    async def _ask(self, method: str, params: tuple[object, ...]) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            async with self._client.stream("POST", self._url, json=body) as response:
                status = response.status_code
                answer = await _read_bounded(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Transient(f"{type(error).__name__} on {method}") from None
        try:
            decoded = json.loads(answer)
            error = decoded.get("error")
        except (ValueError, AttributeError):
            raise _Transient(f"HTTP {status} without JSON-RPC in it, on {method}") from None
        if error is None and status == OK and "result" in decoded:
            return decoded["result"]
        message, code = _read_error(error)
        if status >= TOO_MANY_REQUESTS or code == LIMIT_EXCEEDED or error is None:
            raise _Transient(f"HTTP {status} on {method}: {message[:MESSAGE_CHARS_MAX]}")
        raise ChainRefused(self.network, method, message, code)

    def complain(self, method: str, error: Exception) -> NoReturn:
        """Raise ChainUnreachable for an answer that cannot be what the node knows."""
        raise ChainUnreachable(self.network, self._url, f"nonsense from {method} ({error})") from None


class Chain(JsonRpc):
    """An EVM network's node."""

    async def get_chain_id(self) -> int:
        """Return the number the node says its chain has (the part after `eip155:`)."""
        return self._read_int("eth_chainId", await self.ask("eth_chainId"))

    async def get_block_number(self) -> int:
        """Return the number of the newest block."""
        return self._read_int("eth_blockNumber", await self.ask("eth_blockNumber"))

    async def get_balance(self, address: str) -> int:
        """Return what an account has to pay for gas, in wei."""
        return self._read_int("eth_getBalance", await self.ask("eth_getBalance", address, "latest"))

    async def get_block(self, number: int | None = None) -> Block | None:
        """Return a block's head, the newest one's by default; None where there is no such block."""
        tag = "latest" if number is None else hex(number)
        answer = await self.ask("eth_getBlockByNumber", tag, False)  # noqa: FBT003 - no transactions
        if answer is None:
            return None
        try:
            seconds = int(answer["timestamp"], 16)
            time = datetime.fromtimestamp(seconds, UTC)
            return Block(int(answer["number"], 16), normalize_hash(answer["hash"]), time)
        except (KeyError, TypeError, ValueError, OverflowError, MalformedHash) as error:
            self.complain("eth_getBlockByNumber", error)

    async def get_transaction_receipt(self, transaction_hash: str) -> Receipt | None:
        """Return a mined transaction's receipt; None while it is not mined, or unknown to the node."""
        wanted = normalize_hash(transaction_hash)
        answer = await self.ask("eth_getTransactionReceipt", wanted)
        if answer is None:
            return None
        try:
            receipt = read_receipt(answer)
        except (KeyError, TypeError, ValueError, MalformedHash, MalformedAddress) as error:
            self.complain("eth_getTransactionReceipt", error)
        if receipt.transaction_hash != wanted:
            self.complain("eth_getTransactionReceipt", ValueError("another transaction's receipt"))
        return receipt

    async def call(
        self, to: str, data: bytes, *, sender: str | None = None, block: int | None = None
    ) -> bytes:
        """Return what a contract answers to call data, on a block (the newest). A revert is ChainRefused."""
        request = {"to": normalize_address(to), "data": "0x" + data.hex()}
        if sender is not None:
            request["from"] = normalize_address(sender)
        answer = await self.ask("eth_call", request, "latest" if block is None else hex(block))
        try:
            return bytes.fromhex(cast(str, answer).removeprefix("0x"))
        except (AttributeError, TypeError, ValueError) as error:
            self.complain("eth_call", error)

    def _read_int(self, method: str, answer: object) -> int:
        try:
            return int(cast(str, answer), 16)
        except (TypeError, ValueError) as error:
            self.complain(method, error)


async def _read_bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise httpx.DecodingError(f"more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _read_error(error: object) -> tuple[str, int | None]:
    """Return the message and the code of a JSON-RPC error, which may be anything."""
    if isinstance(error, dict):
        fields = cast(dict[str, Any], error)
        return str(fields.get("message", "no message")), fields.get("code")
    return str(error), None


def read_receipt(answer: dict[str, Any]) -> Receipt:
    """Return a node's receipt as ours. Raises KeyError, TypeError, ValueError or a Refusal on nonsense."""
    return Receipt(
        transaction_hash=normalize_hash(answer["transactionHash"]),
        block_number=int(answer["blockNumber"], 16),
        block_hash=normalize_hash(answer["blockHash"]),
        succeeded=int(answer["status"], 16) == 1,
        logs=tuple(read_log(log) for log in answer["logs"]),
    )


def read_log(log: dict[str, Any]) -> Log:
    """Return a node's log as ours; raises as `read_receipt` does."""
    return Log(
        address=normalize_address(log["address"]),
        topics=tuple(normalize_hash(topic) for topic in log["topics"]),
        data=str(log["data"]).lower(),
        index=int(log["logIndex"], 16),
    )


def decode_transfer(log: Log) -> Transfer | None:
    """Return the ERC-20 Transfer that a log records; None for every other log (ERC-721's has 4 topics)."""
    if len(log.topics) != 3 or log.topics[0] != TRANSFER_TOPIC or not _HASH.fullmatch(log.data):
        return None
    sender, receiver = (_decode_address(topic) for topic in log.topics[1:])
    if sender is None or receiver is None:
        return None
    return Transfer(log.address, sender, receiver, int(log.data, 16), log.index)


def decode_authorization_used(log: Log) -> AuthorizationUsed | None:
    """Return the EIP-3009 AuthorizationUsed that a log records; None for every other log."""
    if len(log.topics) != 3 or log.topics[0] != AUTHORIZATION_USED_TOPIC:
        return None
    authorizer = _decode_address(log.topics[1])
    if authorizer is None:
        return None
    return AuthorizationUsed(log.address, authorizer, log.topics[2], log.index)


def _decode_address(topic: str) -> str | None:
    return "0x" + topic[-40:] if topic.startswith(ADDRESS_PADDING) else None
