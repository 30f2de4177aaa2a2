"""The reconciler killed while it mends: what was mended stays, the next run mends the rest, nothing twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys

from eth_account.signers.local import LocalAccount

from fixtures.reconciling import Shop
from tollbook.core.chains import Chain
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChain

OPEN = 40
KILLS = 3
POLLS_MAX = 6_000
POLL_SECONDS = 0.005
COMMAND = "from tollbook.entrypoints.cli import main; main()"


def start(shop: Shop) -> subprocess.Popen[bytes]:
    environment = {
        "DATABASE_URL": shop.database.url,
        "TOLLBOOK_RPC_URLS": json.dumps({NETWORK: shop.chain.url}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "payments", "reconcile"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )


async def count_mended(shop: Shop) -> int:
    async with shop.database.read() as tx:
        return await tx.value("SELECT count(*) FROM payments.x402_payments WHERE status = 'verified'")


async def test_a_reconciler_killed_while_it_mends_leaves_nothing_half_done(
    database: Database, chain: LocalChain, token: str, payer: LocalAccount
) -> None:
    assert token
    async with Chain(NETWORK, chain.url) as node:
        shop = Shop(database, chain, node, payer, chain.make_account(), chain.make_account())
        for _ in range(OPEN):
            bought = await shop.reserve(shop.sign())
            await shop.ask(bought)
            bought.signed.send(chain)
        for _ in range(KILLS):
            before, running = await count_mended(shop), start(shop)
            for _ in range(POLLS_MAX):
                if running.poll() is not None or await count_mended(shop) > before:
                    break
                await asyncio.sleep(POLL_SECONDS)
            running.send_signal(signal.SIGKILL)
            await asyncio.to_thread(running.wait)
            assert await count_mended(shop) > before or before == OPEN
        assert (await shop.reconcile()).open_count == 0
        assert await count_mended(shop) == OPEN
        async with database.read() as tx:
            told = await tx.dicts("SELECT kind, count(*) AS times FROM core.journal GROUP BY kind")
        times = {row["kind"]: row["times"] for row in told}
        assert times["payment.settled"] == times["difference.mended"] == OPEN
        assert (await shop.reconcile()).differences == []
