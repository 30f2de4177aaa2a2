"""Chains: networks known, nodes asked with patience, logs read strictly, credentials kept."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from solders.pubkey import Pubkey
from x402.mechanisms.evm.default_assets import DEFAULT_ASSETS
from x402.mechanisms.svm.constants import USDC_MAINNET_ADDRESS

from fixtures.serve import serve
from tollbook.core import chains
from tollbook.core.chains import Chain, ChainRefused, ChainUnreachable, Log
from tollbook.core.local_chain import DEPLOYER, LocalChain

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
words = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())


def pad(address: str) -> str:
    return chains.ADDRESS_PADDING + address[2:]


@asynccontextmanager
async def play_node(answer: Callable[[int], tuple[int, object]]) -> AsyncIterator[tuple[str, list[int]]]:
    """A node whose n-th answer is `answer(n)`: a status and a body; yields its URL and the count."""
    asked: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        asked.append(len(asked) + 1)
        status, body = answer(asked[-1])
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [(b"location", b"/elsewhere")] if status == 307 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async with serve(app) as url:
        yield url, asked


def test_the_usdc_of_every_network_is_the_sdks_own() -> None:
    base = chains.find_network("base")
    assert base.id == "eip155:8453"
    assert base.confirmations == 6
    assert base.usdc is not None
    assert base.usdc.address == DEFAULT_ASSETS["eip155:8453"][0]["asset"].lower()
    assert (base.usdc.name, base.usdc.version, base.usdc.decimals) == ("USD Coin", "2", 6)
    assert chains.find_network("eip155:1").confirmations == 12
    assert chains.find_network("local").confirmations == 1
    assert set(DEFAULT_ASSETS) < set(chains.NETWORKS)


def test_solanas_networks_are_known_by_name_and_id_with_their_usdc() -> None:
    mainnet = chains.find_network("solana")
    assert mainnet.id == "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
    assert mainnet.is_solana
    assert mainnet.usdc is not None
    assert mainnet.usdc.address == USDC_MAINNET_ADDRESS
    assert (mainnet.usdc.decimals, mainnet.confirmations) == (6, chains.SOLANA_FINAL)
    devnet = chains.find_network("solana-devnet")
    assert chains.find_network(devnet.id) == devnet
    assert not chains.find_network("base").is_solana


@given(st.binary(min_size=32, max_size=32))
def test_a_solana_address_keeps_its_case(raw: bytes) -> None:
    address = str(Pubkey(raw))
    assert chains.normalize_address_on("solana:x", address) == address


@pytest.mark.parametrize("text", ["1" * 31, "1" * 33, "z" * 44, "", "0" * 32, "l" * 43, "1" * 32 + "\n"])
def test_what_is_not_32_bytes_in_base_58_is_no_solana_address(text: str) -> None:
    with pytest.raises(chains.MalformedAddress, match="32 bytes"):
        chains.normalize_address_on("solana:x", text)


def test_each_network_knows_its_own_addresses() -> None:
    evm, solana = "0x" + "Ab" * 20, USDC_MAINNET_ADDRESS
    assert chains.normalize_address_on("eip155:1", "0x" + "AB" * 20) == evm.lower()
    for network, text in (("eip155:1", solana), ("solana:x", evm)):
        with pytest.raises(chains.MalformedAddress):
            chains.normalize_address_on(network, text)


def test_an_unknown_network_is_refused_by_name() -> None:
    with pytest.raises(chains.UnknownNetwork, match=r"dogecoin.*base"):
        chains.find_network("dogecoin")


@given(addresses)
def test_every_spelling_of_an_address_is_one_address(address: str) -> None:
    spellings = {address, to_checksum_address(address), "0x" + address[2:].upper()}
    assert {chains.normalize_address(spelling) for spelling in spellings} == {address}


@pytest.mark.parametrize(
    "text", ["", "0x", "0x12", "0x" + "g" * 40, "0x" + "1" * 41, " 0x" + "1" * 40, "0X" + "1" * 40]
)
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(chains.MalformedAddress):
        chains.normalize_address(text)


def test_a_mistyped_checksum_address_is_refused() -> None:
    with pytest.raises(chains.MalformedAddress, match="checksum"):
        chains.normalize_address("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914")


@given(words)
def test_every_spelling_of_a_hash_is_one_hash(word: str) -> None:
    assert chains.normalize_hash("0x" + word[2:].upper()) == word


def test_a_malformed_hash_is_refused() -> None:
    for text in ("", "0x", "0x" + "1" * 63, "1" * 64, "0x" + "1" * 64 + "\n"):
        with pytest.raises(chains.MalformedHash):
            chains.normalize_hash(text)


@given(addresses, addresses, addresses, st.integers(0, 2**256 - 1))
def test_a_transfer_reads_back_as_it_was_written(token: str, sender: str, receiver: str, amount: int) -> None:
    log = Log(token, (chains.TRANSFER_TOPIC, pad(sender), pad(receiver)), f"0x{amount:064x}", 3)
    assert chains.decode_transfer(log) == chains.Transfer(token, sender, receiver, amount, 3)
    assert chains.decode_authorization_used(log) is None


@given(st.lists(words, max_size=4), st.sampled_from(["0x", "0x01", "0x" + "00" * 32, "0x" + "00" * 33]))
def test_no_other_log_is_a_transfer(topics: list[str], data: str) -> None:
    log = Log("0x" + "1" * 40, tuple(topics), data, 0)
    assert chains.decode_transfer(log) is None
    assert chains.decode_authorization_used(log) is None


def test_a_log_that_only_resembles_a_transfer_is_none() -> None:
    good = Log("0x" + "1" * 40, (chains.TRANSFER_TOPIC, pad(DEPLOYER), pad(DEPLOYER)), "0x" + "0" * 64, 0)
    assert chains.decode_transfer(good) is not None
    for topics, data in (
        ((*good.topics, pad(DEPLOYER)), "0x"),  # ERC-721: the token's number is a topic
        (good.topics, "0x" + "0" * 128),
        ((good.topics[0], "0x" + "f" * 64, good.topics[2]), good.data),
    ):
        assert chains.decode_transfer(Log(good.address, topics, data, 0)) is None


async def test_a_node_is_asked_for_blocks_receipts_and_calls(chain: LocalChain, token: str) -> None:
    account = chain.make_account()
    sent = chain.send({"from": DEPLOYER, "to": account.address, "value": "0x1"})
    chain.mint(account.address, 77)
    async with Chain(chains.find_network("local").id, chain.url) as node:
        assert await node.get_chain_id() == 31337
        receipt = await node.get_transaction_receipt(sent["transactionHash"].upper().replace("0X", "0x"))
        assert receipt is not None
        assert receipt.succeeded
        assert receipt.logs == ()
        block = await node.get_block(receipt.block_number)
        assert block is not None
        assert (block.number, block.hash) == (receipt.block_number, receipt.block_hash)
        assert abs((datetime.now(UTC) - block.time).total_seconds()) < 3600
        newest = await node.get_block()
        assert newest is not None
        assert newest.number == await node.get_block_number() > receipt.block_number
        minted = await node.get_transaction_receipt(
            chain.call("eth_getBlockByNumber", "latest", False)["transactions"][0]
        )
        assert minted is not None
        transfer = chains.decode_transfer(minted.logs[0])
        assert transfer == chains.Transfer(token, "0x" + "0" * 40, account.address.lower(), 77, 0)
        decimals = await node.call(token, bytes.fromhex("313ce567"))
        assert int.from_bytes(decimals) == 6


async def test_what_a_node_does_not_have_is_none(chain: LocalChain) -> None:
    async with Chain("eip155:31337", chain.url) as node:
        assert await node.get_transaction_receipt("0x" + "ab" * 32) is None
        assert await node.get_block(10**12) is None


async def test_a_revert_is_a_refusal_with_the_contracts_words(chain: LocalChain, token: str) -> None:
    async with Chain("eip155:31337", chain.url) as node:
        with pytest.raises(ChainRefused, match="transfer to the zero address"):
            await node.call(token, bytes.fromhex("a9059cbb") + bytes(64))


async def test_a_node_that_stumbles_is_asked_again() -> None:
    stumbles: list[tuple[int, object]] = [
        (503, b"busy"),
        (200, {"error": {"code": chains.LIMIT_EXCEEDED, "message": "slow down"}}),
        (200, {"result": "0x10"}),
    ]
    async with play_node(lambda n: stumbles[n - 1]) as (url, asked), Chain("eip155:1", url) as node:
        assert await node.get_block_number() == 16
        assert len(asked) == 3


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"boom"),
        (429, {"error": {"code": 429, "message": "too many"}}),
        (200, b""),
        (200, b"[]"),
        (200, {}),
        (307, b""),
        (200, b'{"result": "' + b"0" * (chains.ANSWER_BYTES_MAX + 1)),
    ],
)
async def test_a_node_that_never_answers_usably_is_unreachable(answer: tuple[int, object]) -> None:
    async with play_node(lambda _: answer) as (url, asked), Chain("eip155:1", url) as node:
        with pytest.raises(ChainUnreachable):
            await node.get_block_number()
        assert len(asked) == chains.ATTEMPTS_MAX


async def test_a_refusal_is_not_asked_again() -> None:
    refusal = {"error": {"code": -32601, "message": "method not found"}}
    async with play_node(lambda _: (200, refusal)) as (url, asked), Chain("eip155:1", url) as node:
        with pytest.raises(ChainRefused, match="method not found"):
            await node.get_block_number()
        assert len(asked) == 1


@pytest.mark.parametrize("nonsense", ["soon", 7, {}, {"status": "0x1"}, {"transactionHash": "0x" + "0" * 64}])
async def test_nonsense_from_a_node_is_no_fact(nonsense: object) -> None:
    async with play_node(lambda _: (200, {"result": nonsense})) as (url, _), Chain("eip155:1", url) as node:
        with pytest.raises(ChainUnreachable, match="nonsense"):
            await node.get_transaction_receipt("0x" + "ab" * 32)
        with pytest.raises(ChainUnreachable, match="nonsense"):
            await node.get_block(1)
        if not isinstance(nonsense, str):
            with pytest.raises(ChainUnreachable, match="nonsense"):
                await node.get_block_number()


async def test_another_transactions_receipt_is_nonsense() -> None:
    word = "0x" + "0" * 64
    other = {"transactionHash": word, "blockNumber": "0x1", "blockHash": word, "status": "0x1", "logs": []}
    async with play_node(lambda _: (200, {"result": other})) as (url, _), Chain("eip155:1", url) as node:
        with pytest.raises(ChainUnreachable, match="another transaction"):
            await node.get_transaction_receipt("0x" + "ab" * 32)


async def test_a_nodes_credentials_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = "127.0.0.1:9"  # the discard port: nothing listens
    async with Chain("eip155:1", f"http://user:hunter2@{address}/v2/s3cret?key=s3cret") as node:
        with pytest.raises(ChainUnreachable) as caught:
            await node.get_block_number()
        shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {node!r}"
    async with (
        play_node(lambda _: (200, {"result": "0x1"})) as (url, _),
        Chain("eip155:1", url + "/v2/s3cret") as node,
    ):
        await node.get_block_number()
    assert address in shown
    for text in (shown, caplog.text):
        assert "s3cret" not in text
        assert "hunter2" not in text


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[", "ftp://127.0.0.1/s3cret"])
async def test_an_unusable_url_is_unreachable_not_a_crash(url: str) -> None:
    async with Chain("eip155:1", url) as node:
        with pytest.raises(ChainUnreachable):
            await node.get_block_number()
