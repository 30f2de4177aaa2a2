"""What lanes cost: transactions submitted, and submitted and mined, beside a bare loop of presigned ones.

    python bench/lanes.py [TRANSACTIONS]

anvil mines each transaction at once; 32 callers at a time; one process for the callers, one for PostgreSQL,
one for the chain. Prints transactions a second and this process's CPU time for each.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psycopg

import tollbook
from tollbook.core.database import Database
from tollbook.core.lanes import Call, Lanes
from tollbook.core.lanes.keys import Draft, Fees, Key
from tollbook.core.local_chain import CHAIN_ID, GAS_MONEY_WEI, NETWORK, LocalChain
from tollbook.embedded import throwaway

TRANSACTIONS = 1_000
CALLERS = 32
GAS = 21_000
GWEI = 10**9
RECEIVER = "0x" + "00" * 19 + "99"
MIGRATIONS = Path(tollbook.__file__).parent / "core" / "migrations"
WAIT_SECONDS_MAX = 60.0


async def run(name: str, number: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do the work `number` times with CALLERS at once, and print how fast that was."""
    numbers = iter(range(number))

    async def call() -> None:
        for n in numbers:
            await work(n)

    began, cpu_began = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call() for _ in range(CALLERS)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    print(f"  {name:<44} {number / seconds:7.0f}/s  {cpu / number * 1000:6.2f} ms CPU each")


def make_operator(chain: LocalChain) -> str:
    """A fresh key with gas money."""
    private_key = "0x" + secrets.token_hex(32)
    chain.set_gas_money(Key(private_key).address, GAS_MONEY_WEI)
    return private_key


async def send_bare(chain: LocalChain, number: int) -> None:
    """The limit: transactions signed beforehand, sent by a bare HTTP client, nothing kept."""
    key = Key(make_operator(chain))
    fees = Fees(100 * GWEI, GWEI)
    raw = [key.sign(Draft(CHAIN_ID, n, GAS, fees, RECEIVER, 0, b""))[0].hex() for n in range(number)]
    async with aiohttp.ClientSession() as session:

        async def send(n: int) -> None:
            body = {"jsonrpc": "2.0", "id": n, "method": "eth_sendRawTransaction", "params": ["0x" + raw[n]]}
            async with session.post(chain.url, json=body) as response:
                assert "result" in await response.json()

        await run("bare eth_sendRawTransaction, presigned", number, send)


async def send_lanes(chain: LocalChain, url: str, number: int, keys: int) -> None:
    """The same through lanes."""

    def make_call() -> Call:
        return Call(NETWORK, secrets.token_hex(16), RECEIVER, b"", GAS)

    async with Database(url) as database:
        operators = [make_operator(chain) for _ in range(keys)]
        async with Lanes(database, {NETWORK: chain.url}, operators) as lanes:

            async def submit(_: int) -> None:
                await lanes.submit(make_call())

            async def submit_and_wait(_: int) -> None:
                sent = await lanes.submit(make_call())
                mined = await lanes.wait(sent.transaction_id, seconds_max=WAIT_SECONDS_MAX)
                assert mined.status == "mined"

            await run(f"submit, {keys} key(s)", number, submit)
            await run(f"submit and mined, {keys} key(s)", number, submit_and_wait)


async def main() -> None:
    """Print the limit and the lanes, with one key and with four."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else TRANSACTIONS
    with throwaway() as server, LocalChain.start() as chain:
        for file in sorted(MIGRATIONS.glob("*.up.sql")):
            with psycopg.connect(server.url()) as connection:
                connection.execute(file.read_bytes())
        print(f"{number} transactions, {CALLERS} callers")
        await send_bare(chain, number)
        for keys in (1, 4):
            await send_lanes(chain, server.url(), number, keys)


if __name__ == "__main__":
    asyncio.run(main())
