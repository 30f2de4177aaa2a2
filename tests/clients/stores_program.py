"""A process of its own that uses the stores as an SDK's user would: `stores_program.py URL VERB …`."""

import asyncio
import sys
import time
from collections.abc import Callable

from x402.mechanisms.evm.batch_settlement.server.storage import Channel

from tollbook.core.stores import (
    PostgresChannelStorage,
    PostgresPaymentIdentifiers,
    PostgresPendingSettlementStore,
    PostgresSettlementCache,
    PostgresSIWxStorage,
)
from tollbook.core.stores.payment_identifiers import Answer, Begun


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def set_pending(url: str, key: str, tx_hash: str) -> None:
    PostgresPendingSettlementStore(url).set(key, tx_hash)
    say("set")
    time.sleep(600)  # until it is killed


def get_pending(url: str, key: str) -> None:
    say(PostgresPendingSettlementStore(url).get(key))


def charge(url: str, channel_id: str, times: str) -> None:
    storage = PostgresChannelStorage(url)

    def add(current: Channel | None) -> Channel | None:
        assert current is not None
        changed = current.copy()
        changed.charged_cumulative_amount = str(int(current.charged_cumulative_amount) + 1)
        return changed

    for _ in range(int(times)):
        storage.update_channel(channel_id, add)


def hang_in_update(url: str, channel_id: str) -> None:
    def hang(current: Channel | None) -> Channel | None:
        say("locked")
        time.sleep(600)  # until it is killed
        return current

    PostgresChannelStorage(url).update_channel(channel_id, hang)


def settle_once(url: str, keys: str) -> None:
    cache = PostgresSettlementCache(url)
    say(sum(not cache.is_duplicate(f"key {number}") for number in range(int(keys))))


def sign_in(url: str, times: str) -> None:
    storage = PostgresSIWxStorage(url)
    say(sum(storage.has_paid("/weather", "0xabc") for _ in range(int(times))))


def begin_and_die(url: str, identifier: str) -> None:
    say(type(asyncio.run(PostgresPaymentIdentifiers(url).begin(identifier, bytes(32)))).__name__)
    time.sleep(600)  # until it is killed


def answer(url: str, identifier: str) -> None:
    async def work() -> None:
        identifiers = PostgresPaymentIdentifiers(url)
        begun = await identifiers.begin(identifier, bytes(32))
        if isinstance(begun, Begun):
            await identifiers.finish(begun, Answer(200, (), b"paid"))
        say(type(begun).__name__)

    asyncio.run(work())


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        set_pending,
        get_pending,
        charge,
        hang_in_update,
        settle_once,
        sign_in,
        begin_and_die,
        answer,
    )
}

if __name__ == "__main__":
    VERBS[sys.argv[2]](sys.argv[1], *sys.argv[3:])
