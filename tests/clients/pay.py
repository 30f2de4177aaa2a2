"""The official clients, unmodified, as test tools: Python's over httpx, TypeScript's over fetch."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements

from tollbook.core.local_chain import NETWORK, TOKEN_NAME, TOKEN_VERSION

NODE_SECONDS_MAX = 60


def make_x402_client(account: LocalAccount, asset: str) -> x402Client:
    """The SDK's client with one purse: it spends that asset on the local chain and nothing else."""
    client = x402Client()
    register_exact_evm_client(client, EthAccountSigner(account), networks=NETWORK)
    client.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": asset}]})
    return client


def paying_client(account: LocalAccount, asset: str, **httpx_options: Any) -> httpx.AsyncClient:
    """The SDK's httpx client: it answers a 402 by paying and asking again. Close it after use."""
    return x402HttpxClient(make_x402_client(account, asset), **({"timeout": 60} | httpx_options))


def require(asset: str, pay_to: str, amount: int = 10_000, **changes: Any) -> PaymentRequirements:
    """What a seller asks for on the local chain; `changes` replace single fields."""
    fields: dict[str, Any] = {
        "scheme": "exact",
        "network": NETWORK,
        "asset": asset,
        "amount": str(amount),
        "pay_to": pay_to,
        "max_timeout_seconds": 60,
        "extra": {"name": TOKEN_NAME, "version": TOKEN_VERSION},
    }
    return PaymentRequirements(**(fields | changes))


async def sign(account: LocalAccount, requirements: PaymentRequirements) -> PaymentPayload:
    """The payment that the SDK's client signs for these requirements."""
    client = make_x402_client(account, requirements.asset)
    payload = await client.create_payment_payload(PaymentRequired(accepts=[requirements]))
    assert isinstance(payload, PaymentPayload)
    return payload


async def pay_with_node(
    url: str, account: LocalAccount, asset: str, program: str = "pay.mjs", **options: str
) -> list[Any]:
    """What the program printed: an answer per fetch. `options` are its variables, as `PAY_TIMES="3"`."""
    node = shutil.which("node")
    assert node is not None, "Node 18 or newer is needed for the TypeScript client"
    environment = {"PAY_URL": url, "PAY_KEY": "0x" + account.key.hex(), "PAY_ASSET": asset}
    process = await asyncio.create_subprocess_exec(
        node,
        str(Path(__file__).with_name(program)),
        env=os.environ | environment | options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, complaints = await asyncio.wait_for(process.communicate(), NODE_SECONDS_MAX)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, complaints.decode()
    return json.loads(output)["answers"]
