"""A seller's channels: the SDK's own cases, then what only a shared store can do."""

import secrets
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x402.mechanisms.evm.batch_settlement.server.storage import (
    Channel,
    ChannelStorage,
    InMemoryChannelStorage,
    PendingRequest,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig

from fixtures.stores import end, read_line
from tollbook.core.stores import Connections, PostgresChannelStorage
from tollbook.core.stores.channels import ChannelWouldShrink
from tollbook.core.stores.sealing import KEY_BYTES, SealKeyUnusable

CHANNEL = "0x" + "AB" * 32
OTHER = "0x" + "cd" * 32
LARGEST = 2**256 - 1
CONFIG = ChannelConfig(
    payer="0x" + "11" * 20,
    payer_authorizer="0x" + "11" * 20,
    receiver="0x" + "22" * 20,
    receiver_authorizer="0x" + "22" * 20,
    token="0x" + "33" * 20,
    withdraw_delay=900,
    salt="0x" + "44" * 32,
)


def make_channel(charged: int = 0, signed: int = 100, **changes: object) -> Channel:
    fields: dict[str, object] = {
        "channel_id": CHANNEL.lower(),
        "channel_config": CONFIG,
        "charged_cumulative_amount": str(charged),
        "signed_max_claimable": str(signed),
        "signature": "0x" + secrets.token_hex(65),
    }
    return Channel(**(fields | changes))  # type: ignore[arg-type]


def charge(amount: int) -> Callable[[Channel | None], Channel | None]:
    def update(current: Channel | None) -> Channel | None:
        changed = (current or make_channel()).copy()
        changed.charged_cumulative_amount = str(int(changed.charged_cumulative_amount) + amount)
        changed.signed_max_claimable = str(max(int(changed.signed_max_claimable), 100_000))
        return changed

    return update


@pytest.fixture
def postgres_storage(connections: Connections) -> PostgresChannelStorage:
    return PostgresChannelStorage(connections)


@pytest.fixture(params=["memory", "postgres", "sealed"])
def storage(request: pytest.FixtureRequest) -> ChannelStorage:
    if request.param == "memory":
        return InMemoryChannelStorage()
    key = secrets.token_bytes(KEY_BYTES) if request.param == "sealed" else None
    return PostgresChannelStorage(request.getfixturevalue("connections"), key=key)


def test_what_is_not_there_is_none(storage: ChannelStorage) -> None:
    assert storage.get(CHANNEL) is None
    assert storage.list() == []
    assert storage.update_channel(CHANNEL, lambda current: current).status == "unchanged"
    assert storage.get(CHANNEL) is None


def test_a_channel_comes_back_as_it_was(storage: ChannelStorage) -> None:
    channel = make_channel(
        charged=LARGEST - 1,
        signed=LARGEST,
        balance=str(LARGEST),
        total_claimed="7",
        withdraw_requested_at=1_700_000_000,
        refund_nonce=3,
        onchain_synced_at=1_700_000_000_123,
        last_request_timestamp=1_700_000_000_456,
        pending_request=PendingRequest("0xpending", str(LARGEST), 1_700_000_000_789),
    )
    result = storage.update_channel(CHANNEL, lambda _: channel)
    assert (result.status, result.channel) == ("updated", channel)
    assert storage.get(CHANNEL) == channel
    assert storage.get(CHANNEL.lower()) == channel
    assert storage.list() == [channel]


def test_a_reservation_is_taken_away(storage: ChannelStorage) -> None:
    storage.update_channel(CHANNEL, lambda _: make_channel(pending_request=PendingRequest("0x1", "100", 5)))
    storage.update_channel(CHANNEL, lambda _: make_channel())
    kept = storage.get(CHANNEL)
    assert kept is not None
    assert kept.pending_request is None


def test_the_same_object_changes_nothing(storage: ChannelStorage) -> None:
    storage.update_channel(CHANNEL, charge(5))
    before = storage.get(CHANNEL)
    result = storage.update_channel(CHANNEL, lambda current: current)
    assert (result.status, result.channel) == ("unchanged", before)


def test_none_deletes(storage: ChannelStorage) -> None:
    storage.update_channel(CHANNEL, charge(5))
    result = storage.update_channel(CHANNEL, lambda _: None)
    assert (result.status, result.channel) == ("deleted", None)
    assert storage.get(CHANNEL) is None


def test_an_update_that_raises_changes_nothing(storage: ChannelStorage) -> None:
    storage.update_channel(CHANNEL, charge(5))
    before = storage.get(CHANNEL)

    def fail(_: Channel | None) -> Channel | None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        storage.update_channel(CHANNEL, fail)
    assert storage.get(CHANNEL) == before


def test_what_is_no_channel_id_is_refused(storage: ChannelStorage) -> None:
    with pytest.raises(ValueError, match="channel_id"):
        storage.get("0x12")


def test_eight_threads_charge_a_channel_that_did_not_exist_and_no_charge_is_lost(
    storage: ChannelStorage,
) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: storage.update_channel(CHANNEL, charge(1)), range(80)):
            pass
    kept = storage.get(CHANNEL)
    assert kept is not None
    assert kept.charged_cumulative_amount == "80"


def test_channels_do_not_wait_for_each_other(storage: ChannelStorage) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(current: Channel | None) -> Channel | None:
        inside.set()
        assert leave.wait(30)
        return current

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(storage.update_channel, CHANNEL, hold)
        assert inside.wait(30)
        assert storage.update_channel(OTHER, lambda _: make_channel(channel_id=OTHER)).status == "updated"
        leave.set()
        assert held.result(30).status == "unchanged"


def test_two_processes_charge_one_channel_and_no_charge_is_lost(
    database_url: str,
    postgres_storage: PostgresChannelStorage,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    postgres_storage.update_channel(CHANNEL, lambda _: make_channel(signed=1000))
    for process in [start(database_url, "charge", CHANNEL, "100") for _ in range(2)]:
        end(process)
    kept = postgres_storage.get(CHANNEL)
    assert kept is not None
    assert kept.charged_cumulative_amount == "200"


def test_a_process_killed_inside_an_update_leaves_the_channel_as_it_was_and_free(
    database_url: str,
    postgres_storage: PostgresChannelStorage,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    postgres_storage.update_channel(CHANNEL, charge(5))
    before = postgres_storage.get(CHANNEL)
    process = start(database_url, "hang_in_update", CHANNEL)
    assert read_line(process) == "locked"
    process.kill()
    process.wait()
    result = postgres_storage.update_channel(CHANNEL, lambda current: current)
    assert result.channel == before


def test_what_was_charged_never_goes_down(postgres_storage: PostgresChannelStorage) -> None:
    postgres_storage.update_channel(CHANNEL, lambda _: make_channel(charged=500, signed=500))
    with pytest.raises(ChannelWouldShrink):
        postgres_storage.update_channel(CHANNEL, lambda _: make_channel(charged=100, signed=500))
    kept = postgres_storage.get(CHANNEL)
    assert kept is not None
    assert kept.charged_cumulative_amount == "500"


def test_no_more_is_charged_than_was_signed(postgres_storage: PostgresChannelStorage) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        postgres_storage.update_channel(CHANNEL, lambda _: make_channel(charged=101, signed=100))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(signed=st.lists(st.integers(min_value=0, max_value=LARGEST), min_size=1, max_size=6))
def test_the_highest_voucher_is_kept_whichever_came_last(
    postgres_storage: PostgresChannelStorage, signed: list[int]
) -> None:
    channel_id = "0x" + secrets.token_hex(32)
    vouchers = [make_channel(signed=amount, channel_id=channel_id) for amount in signed]
    for voucher in vouchers:
        postgres_storage.update_channel(channel_id, lambda _, voucher=voucher: voucher)
    highest = postgres_storage.find_highest_voucher(channel_id)
    assert highest is not None
    assert highest.signed_max_claimable == max(signed)
    assert highest.signature in [v.signature for v in vouchers if int(v.signed_max_claimable) == max(signed)]
    assert postgres_storage.get(channel_id) == vouchers[-1]


def test_there_is_no_voucher_of_an_unknown_channel(postgres_storage: PostgresChannelStorage) -> None:
    assert postgres_storage.find_highest_voucher(CHANNEL) is None


@pytest.mark.parametrize("sealed", [False, True])
def test_a_dump_shows_a_signature_only_where_there_is_no_key(
    sealed: bool, connections: Connections, database_url: str
) -> None:
    key = secrets.token_bytes(KEY_BYTES) if sealed else None
    channel = make_channel()
    PostgresChannelStorage(connections, key=key).update_channel(CHANNEL, lambda _: channel)
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT c::text FROM stores.channels c").fetchone()
    assert row is not None
    assert (channel.signature[2:] in row[0]) is not sealed


def test_a_sealed_channel_opens_with_its_key_alone(connections: Connections) -> None:
    key = secrets.token_bytes(KEY_BYTES)
    channel = make_channel()
    PostgresChannelStorage(connections, key=key).update_channel(CHANNEL, lambda _: channel)
    for wrong in (None, secrets.token_bytes(KEY_BYTES)):
        with pytest.raises(SealKeyUnusable) as refusal:
            PostgresChannelStorage(connections, key=wrong).get(CHANNEL)
        assert key.hex() not in str(refusal.value)
    assert PostgresChannelStorage(connections, key=key).get(CHANNEL) == channel


def test_a_key_that_comes_later_seals_from_then_on(connections: Connections) -> None:
    channel = make_channel()
    PostgresChannelStorage(connections).update_channel(CHANNEL, lambda _: channel)
    later = PostgresChannelStorage(connections, key=secrets.token_bytes(KEY_BYTES))
    assert later.get(CHANNEL) == channel


def test_a_key_of_another_length_is_refused(connections: Connections) -> None:
    with pytest.raises(SealKeyUnusable):
        PostgresChannelStorage(connections, key=b"short")
