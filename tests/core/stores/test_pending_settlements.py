"""Pending settlements: the SDK's own cases, then what only a shared store can do."""

import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.evm.types import TransactionReceipt
from x402.pending_settlement_store import InMemoryPendingSettlementStore, PendingSettlementStore

from clients.pay import require, sign
from fixtures.stores import age, end, read_line
from tollbook.core.local_chain import LocalChain
from tollbook.core.stores import Connections, PostgresPendingSettlementStore

SIGNATURE = "0x" + "ab" * 65


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> PendingSettlementStore:
    if request.param == "memory":
        return InMemoryPendingSettlementStore()
    return PostgresPendingSettlementStore(request.getfixturevalue("connections"))


def test_it_is_what_the_sdk_asks_for(store: PendingSettlementStore) -> None:
    assert isinstance(store, PendingSettlementStore)


def test_what_is_not_there_is_none(store: PendingSettlementStore) -> None:
    assert store.get(SIGNATURE) is None
    store.delete(SIGNATURE)


def test_the_last_transaction_counts(store: PendingSettlementStore) -> None:
    store.set(SIGNATURE, "0x01")
    store.set("another", "0x02")
    store.set(SIGNATURE, "0x03")
    assert store.get(SIGNATURE) == "0x03"
    assert store.get("another") == "0x02"


def test_what_is_deleted_is_gone(store: PendingSettlementStore) -> None:
    store.set(SIGNATURE, "0x01")
    store.delete(SIGNATURE)
    assert store.get(SIGNATURE) is None


def test_eight_threads_see_their_own_writes(store: PendingSettlementStore) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for step in range(20):
            store.set(f"key {number}", f"0x{step}")
            if store.get(f"key {number}") != f"0x{step}":
                wrong.append(f"{number} {step}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_entry_outlives_the_process_that_was_killed(
    database_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    first = start(database_url, "set_pending", SIGNATURE, "0x01")
    assert read_line(first) == "set"
    first.kill()
    first.wait()
    assert end(start(database_url, "get_pending", SIGNATURE)) == "0x01"


def test_an_entry_stays_for_its_days_and_not_longer(connections: Connections, database_url: str) -> None:
    store = PostgresPendingSettlementStore(connections)
    store.set(SIGNATURE, "0x01")
    age(database_url, "UPDATE stores.pending_settlements SET broadcast_at = now() - interval '29 days'")
    assert store.purge() == 0
    assert store.get(SIGNATURE) == "0x01"
    age(database_url, "UPDATE stores.pending_settlements SET broadcast_at = now() - interval '31 days'")
    assert store.purge() == 1
    assert store.get(SIGNATURE) is None


class DeafSigner(FacilitatorWeb3Signer):
    """Sends, and never hears of the receipt: a chain slower than its facilitator's patience."""

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        raise TimeoutError(tx_hash)


@pytest.mark.parametrize("shared", [False, True])
async def test_rows_f_and_g_a_retry_at_another_facilitator_finds_the_transaction_that_was_sent(
    shared: bool,
    connections: Connections,
    chain: LocalChain,
    token: str,
    payer: LocalAccount,
    operator: LocalAccount,
    seller: LocalAccount,
) -> None:
    def make_store() -> Any:
        return PostgresPendingSettlementStore(connections) if shared else InMemoryPendingSettlementStore()

    key = "0x" + operator.key.hex()
    first = ExactEvmScheme(DeafSigner(key, chain.url), pending_store=make_store())
    second = ExactEvmScheme(FacilitatorWeb3Signer(key, chain.url), pending_store=make_store())
    requirements = require(token, seller.address)
    payload = await sign(payer, requirements)

    sent = first.settle(payload, requirements)
    assert sent.error_reason == "settlement_pending"
    again = second.settle(payload, requirements)
    assert (again.success, again.transaction == sent.transaction) == (
        (True, True) if shared else (False, False)
    )
    assert chain.read_balance(seller.address) == 10_000
