"""Sign-ins: the SDK's own cases and its hooks, then what only our store can do."""

import base64
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from x402.http.types import PaymentOption, RouteConfig

from fixtures.stores import age, end
from tollbook.core.stores import Connections, PostgresSIWxStorage
from tollbook.core.stores.sign_ins import NonceUsed

ORIGIN = "https://shop.example"
SOLANA = "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV"
ROUTE = RouteConfig(
    accepts=PaymentOption(scheme="exact", pay_to="0x" + "22" * 20, price="$0.01", network="eip155:8453")
)
NEEDS = "the SDK's sign-in needs more libraries: install x402[extensions]"


@pytest.fixture(params=["memory", "postgres"])
def storage(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        pytest.importorskip("jsonschema", reason=NEEDS)
        from x402.extensions.sign_in_with_x.storage import InMemorySIWxStorage

        return InMemorySIWxStorage()
    return PostgresSIWxStorage(request.getfixturevalue("connections"))


def test_who_has_not_paid_has_not_paid(storage: Any) -> None:
    assert not storage.has_paid("/weather", "0xabc")


def test_who_has_paid_has_paid_for_that_path(storage: Any) -> None:
    storage.record_payment("/weather", "0xABC")
    storage.record_payment("/weather", "0xABC")
    assert storage.has_paid("/weather", "0xabc")
    assert storage.has_paid("/weather", "0xaBc")
    assert not storage.has_paid("/news", "0xabc")
    assert not storage.has_paid("/weather", "0xdef")


def test_a_grant_ends(connections: Connections, database_url: str) -> None:
    storage = PostgresSIWxStorage(connections, lifetime=timedelta(hours=1))
    storage.record_payment("/weather", "0xabc")
    assert storage.has_paid("/weather", "0xabc")
    age(database_url, "UPDATE stores.sign_in_grants SET expires_at = expires_at - interval '1 hour'")
    assert not storage.has_paid("/weather", "0xabc")
    assert storage.purge() == 1
    storage.record_payment("/weather", "0xabc")
    assert storage.has_paid("/weather", "0xabc")


def test_a_grant_is_used_as_often_as_was_bought(connections: Connections) -> None:
    storage = PostgresSIWxStorage(connections, uses_max=3)
    storage.record_payment("/weather", "0xabc")
    with ThreadPoolExecutor(8) as pool:
        granted = list(pool.map(lambda _: storage.has_paid("/weather", "0xabc"), range(20)))
    assert granted.count(True) == 3


def test_a_second_payment_adds_to_what_is_left(connections: Connections, database_url: str) -> None:
    storage = PostgresSIWxStorage(connections, uses_max=3)
    storage.record_payment("/weather", "0xabc")
    assert storage.has_paid("/weather", "0xabc")
    storage.record_payment("/weather", "0xabc")
    assert [storage.has_paid("/weather", "0xabc") for _ in range(6)] == [True] * 5 + [False]

    storage.record_payment("/weather", "0xabc")
    age(database_url, "UPDATE stores.sign_in_grants SET expires_at = now() - interval '1 hour'")
    storage.record_payment("/weather", "0xabc")
    assert [storage.has_paid("/weather", "0xabc") for _ in range(4)] == [True] * 3 + [False]


def test_two_processes_share_the_uses(
    connections: Connections, database_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    PostgresSIWxStorage(connections, uses_max=50).record_payment("/weather", "0xabc")
    processes = [start(database_url, "sign_in", "40") for _ in range(2)]
    assert sum(int(end(process)) for process in processes) == 50


def test_a_solana_address_keeps_its_case(connections: Connections) -> None:
    storage = PostgresSIWxStorage(connections)
    storage.record_payment("/weather", SOLANA)
    assert storage.has_paid("/weather", SOLANA)
    assert not storage.has_paid("/weather", SOLANA.lower())


def test_a_nonce_is_used_once(connections: Connections) -> None:
    storage = PostgresSIWxStorage(connections)
    assert not storage.has_used_nonce("one")
    storage.record_nonce("one")
    assert storage.has_used_nonce("one")
    with pytest.raises(NonceUsed):
        storage.record_nonce("one")
    assert not storage.has_used_nonce("two")


def test_of_eight_who_all_checked_first_one_uses_the_nonce_and_one_use_is_taken(
    connections: Connections,
) -> None:
    storage = PostgresSIWxStorage(connections, uses_max=10)
    storage.record_payment("/weather", "0xabc")
    assert [storage.has_used_nonce("one") for _ in range(8)] == [False] * 8

    def sign_in(_: int) -> bool:
        assert storage.has_paid("/weather", "0xabc")
        try:
            storage.record_nonce("one")
        except NonceUsed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sign_in, range(8))).count(True) == 1
    assert [storage.has_paid("/weather", "0xabc") for _ in range(10)] == [True] * 9 + [False]


def test_nonces_are_forgotten_when_nobody_could_present_them(
    connections: Connections, database_url: str
) -> None:
    storage = PostgresSIWxStorage(connections)
    storage.record_nonce("one")
    assert storage.purge() == 0
    age(database_url, "UPDATE stores.sign_in_nonces SET used_at = now() - interval '25 hours'")
    assert storage.purge() == 1


class Adapter:
    """What the SDK's hook reads of a request."""

    def __init__(self, header: str) -> None:
        self._header = header

    def get_header(self, name: str) -> str | None:
        return self._header if name.lower() == "sign-in-with-x" else None


@pytest.fixture
def visitor() -> LocalAccount:
    return Account.create()


def sign_header(account: LocalAccount, nonce: str) -> str:
    """The header that signs the account in at the shop."""
    from x402.extensions.sign_in_with_x.evm import format_siwe_message
    from x402.extensions.sign_in_with_x.types import SIWxPayload

    fields = {
        "domain": "shop.example",
        "address": account.address,
        "uri": f"{ORIGIN}/weather",
        "version": "1",
        "chainId": "eip155:8453",
        "type": "eip191",
        "nonce": nonce,
        "issuedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
    }
    message = format_siwe_message(SIWxPayload(**fields, signature="0x"), account.address)
    signature = account.sign_message(encode_defunct(text=message)).signature.hex()
    return base64.b64encode(json.dumps(fields | {"signature": "0x" + signature}).encode()).decode()


async def present(hook: Any, header: str) -> Any:
    return await hook(SimpleNamespace(adapter=Adapter(header), path="/weather"), ROUTE)


def make_hook(storage: Any, events: list[Any]) -> Any:
    from x402.extensions.sign_in_with_x.hooks import CreateSIWxRequestHookOptions, create_siwx_request_hook

    return create_siwx_request_hook(
        CreateSIWxRequestHookOptions(origin=ORIGIN, storage=storage, on_event=events.append)
    )


def test_row_m_the_bare_sdk_refuses_every_storage_that_tracks_nonces() -> None:
    pytest.importorskip("siwe", reason=NEEDS)

    class AsDocumented:
        def has_used_nonce(self, nonce: str) -> bool:
            return False

        def record_nonce(self, nonce: str) -> None: ...

    with pytest.raises(ValueError, match="record_nonce"):
        make_hook(AsDocumented(), [])


async def test_row_m_the_sdks_hook_takes_our_storage_and_lets_a_payer_in_once_a_nonce(
    connections: Connections, visitor: LocalAccount
) -> None:
    pytest.importorskip("siwe", reason=NEEDS)
    events: list[Any] = []
    storage = PostgresSIWxStorage(connections, uses_max=2)
    hook = make_hook(storage, events)
    assert await present(hook, sign_header(visitor, "nonce00000000000")) is None  # nothing paid yet
    storage.record_payment("/weather", visitor.address)
    header = sign_header(visitor, "nonce00000000001")
    assert await present(hook, header) is not None, events
    assert await present(hook, header) is None
    assert events[-1]["type"] == "nonce_reused"
    assert await present(hook, sign_header(visitor, "nonce00000000002")) is not None
    assert await present(hook, sign_header(visitor, "nonce00000000003")) is None  # both uses are taken
