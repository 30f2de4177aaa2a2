"""A buyer's channels: the SDK's own cases, then what only a shared store can do."""

import itertools
import secrets
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from x402.mechanisms.evm.batch_settlement.client.storage import (
    BatchSettlementClientContext,
    ClientChannelStorage,
    InMemoryClientChannelStorage,
)

from tollbook.core.stores import Connections, PostgresClientChannelStorage
from tollbook.core.stores.sealing import KEY_BYTES

CHANNEL = "0x" + "AB" * 32


def make_context(charged: int = 100, **changes: object) -> BatchSettlementClientContext:
    fields: dict[str, object] = {"charged_cumulative_amount": str(charged), "balance": "1000"}
    return BatchSettlementClientContext(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def postgres_storage(connections: Connections) -> PostgresClientChannelStorage:
    return PostgresClientChannelStorage(connections, owner="0xbuyer")


@pytest.fixture(params=["memory", "postgres", "sealed"])
def storage(request: pytest.FixtureRequest) -> ClientChannelStorage:
    if request.param == "memory":
        return InMemoryClientChannelStorage()
    key = secrets.token_bytes(KEY_BYTES) if request.param == "sealed" else None
    return PostgresClientChannelStorage(request.getfixturevalue("connections"), owner="0xbuyer", key=key)


def test_what_is_not_there_is_none(storage: ClientChannelStorage) -> None:
    assert storage.get(CHANNEL) is None
    storage.delete(CHANNEL)


@pytest.mark.parametrize(
    "context",
    [
        BatchSettlementClientContext(),
        make_context(),
        make_context(
            2**256 - 1,
            total_claimed="7",
            signed_max_claimable=str(2**256 - 1),
            signature="0x" + "ab" * 65,
            extra={"a": [1]},
        ),
    ],
)
def test_a_context_comes_back_as_it_was(
    storage: ClientChannelStorage, context: BatchSettlementClientContext
) -> None:
    storage.set(CHANNEL, context)
    assert storage.get(CHANNEL) == context
    assert storage.get(CHANNEL.lower()) == context


def test_what_is_deleted_is_gone_and_may_begin_again_lower(storage: ClientChannelStorage) -> None:
    storage.set(CHANNEL, make_context(500))
    storage.delete(CHANNEL)
    assert storage.get(CHANNEL) is None
    storage.set(CHANNEL, make_context(100))
    assert storage.get(CHANNEL) == make_context(100)


def test_what_is_no_channel_id_is_refused(storage: ClientChannelStorage) -> None:
    with pytest.raises(ValueError, match="channel_id"):
        storage.get("0x12")


def test_an_answer_that_was_overtaken_lowers_nothing(postgres_storage: PostgresClientChannelStorage) -> None:
    signed = {"signed_max_claimable": "500", "signature": "0x05"}
    postgres_storage.set(CHANNEL, make_context(500, **signed))
    postgres_storage.set(CHANNEL, make_context(400, signed_max_claimable="400", signature="0x04"))
    assert postgres_storage.get(CHANNEL) == make_context(500, **signed)


def test_eight_threads_leave_the_highest(postgres_storage: PostgresClientChannelStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda charged: postgres_storage.set(CHANNEL, make_context(charged)), range(80)))
    kept = postgres_storage.get(CHANNEL)
    assert kept is not None
    assert kept.charged_cumulative_amount == "79"


def test_a_dearer_voucher_is_not_forgotten_for_a_cheaper_one(
    postgres_storage: PostgresClientChannelStorage,
) -> None:
    for signed, charged in itertools.product((700, 600), (500, 501)):
        context = make_context(charged, signed_max_claimable=str(signed), signature=f"0x{signed}")
        postgres_storage.set(CHANNEL, context)
    kept = postgres_storage.get(CHANNEL)
    assert kept is not None
    assert (kept.signed_max_claimable, kept.signature) == ("700", "0x700")


def test_owners_do_not_see_each_other(connections: Connections) -> None:
    one = PostgresClientChannelStorage(connections, owner="one")
    two = PostgresClientChannelStorage(connections, owner="two")
    one.set(CHANNEL, make_context(100))
    assert two.get(CHANNEL) is None
    two.delete(CHANNEL)
    assert one.get(CHANNEL) == make_context(100)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_dump_shows_a_signature_only_where_there_is_no_key(
    sealed: bool, connections: Connections, database_url: str
) -> None:
    key = secrets.token_bytes(KEY_BYTES) if sealed else None
    signature = secrets.token_hex(65)
    storage = PostgresClientChannelStorage(connections, owner="one", key=key)
    storage.set(CHANNEL, make_context(signed_max_claimable="100", signature="0x" + signature))
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT c::text FROM stores.client_channels c").fetchone()
    assert row is not None
    assert (signature in row[0]) is not sealed
