"""The example receiver, run as its README says: it takes what is ours, once, and nothing else."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from fixtures.running import find_port
from fixtures.webhooks import LOCAL, Tollkeeper, fact
from tollbook.core import clock, ids
from tollbook.core.webhooks import deliveries, desk
from tollbook.core.webhooks.sending import Post

FOLDER = Path(__file__).parents[3] / "examples" / "webhook_receiver"


@asynccontextmanager
async def receiving(port: int, secret: str) -> AsyncIterator[httpx.AsyncClient]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "--app-dir", str(FOLDER), "receiver:app", "--port", str(port),
        "--log-level", "warning", env=os.environ | {"WEBHOOK_SECRET": secret},
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.timeout(120):
            while True:
                try:
                    await client.get("/")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def test_the_example_takes_what_is_signed_once_and_refuses_the_rest(keeper: Tollkeeper) -> None:
    port = find_port()
    grant = await keeper.subscribe("payments.*", url=f"http://127.0.0.1:{port}/hooks")
    name = grant.subscription.subscription_id
    async with receiving(port, grant.secret) as client, Post(LOCAL) as keeper.post:
        await keeper.happen(fact("pay_1"), fact("pay_2"))
        await keeper.tell(keeper.make_sender())
        async with keeper.database.read() as tx:
            told = await deliveries.page(tx, name, limit=9)
        await desk.replay_one(keeper.database, name, told[0].delivery_id, replay_id=ids.make())
        keeper.now = clock.now()
        await keeper.tell(keeper.make_sender())
        assert await keeper.statuses() == ["delivered"] * 3
        shown = (await client.get("/")).json()
        assert sorted(event["data"]["subject"] for event in shown) == ["pay_1", "pay_2"]
        forged = {"webhook-id": "msg_x", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
        assert (await client.post("/hooks", content=b"{}", headers=forged)).status_code == 401
        assert (await client.post("/hooks", content=b"{}")).status_code == 401
