"""The Solana settlement cache: the SDK's own cases, then what only a shared one can do."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from x402.mechanisms.svm.settlement_cache import SettlementCache

from fixtures.stores import age, end
from tollbook.core.stores import Connections, PostgresSettlementCache


@pytest.fixture(params=["memory", "postgres"])
def cache(request: pytest.FixtureRequest) -> SettlementCache:
    if request.param == "memory":
        return SettlementCache()
    return PostgresSettlementCache(request.getfixturevalue("connections"))


def test_the_second_is_a_duplicate(cache: SettlementCache) -> None:
    assert [cache.is_duplicate("one") for _ in range(3)] == [False, True, True]
    assert not cache.is_duplicate("two")


def test_what_was_not_sent_may_be_settled_again(cache: SettlementCache) -> None:
    cache.is_duplicate("one")
    cache.delete("one")
    cache.delete("unknown")
    assert not cache.is_duplicate("one")


def test_an_empty_cache_is_not_taken_for_none(cache: SettlementCache) -> None:
    assert cache, "the SDK writes `settlement_cache or SettlementCache()`"


def test_of_eight_threads_one_settles(cache: SettlementCache) -> None:
    with ThreadPoolExecutor(8) as pool:
        for key in range(20):
            answers = list(pool.map(cache.is_duplicate, [f"key {key}"] * 8))
            assert answers.count(False) == 1


def test_of_two_processes_one_settles_each_payment(
    database_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start(database_url, "settle_once", "100") for _ in range(2)]
    assert sum(int(end(process)) for process in processes) == 100


def test_after_its_lifetime_a_payment_is_new_to_one(connections: Connections, database_url: str) -> None:
    cache = PostgresSettlementCache(connections)
    assert not cache.is_duplicate("one")
    age(database_url, "UPDATE stores.settlement_keys SET seen_at = now() - interval '119 seconds'")
    assert cache.is_duplicate("one")
    age(database_url, "UPDATE stores.settlement_keys SET seen_at = now() - interval '121 seconds'")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cache.is_duplicate, ["one"] * 8)).count(False) == 1


def test_a_purge_leaves_what_lives(connections: Connections, database_url: str) -> None:
    cache = PostgresSettlementCache(connections)
    cache.is_duplicate("old")
    age(database_url, "UPDATE stores.settlement_keys SET seen_at = now() - interval '121 seconds'")
    cache.is_duplicate("new")
    assert cache.purge() == 1
    assert cache.is_duplicate("new")
