"""The official Python client on Solana, unmodified, as a test tool."""

from typing import Any

import httpx
from solders.keypair import Keypair
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.svm.exact import register_exact_svm_client
from x402.mechanisms.svm.signers import KeypairSigner
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements

from fixtures.solana import MINT, NETWORK


def make_x402_client(account: Keypair, rpc_url: str, mint: str = MINT) -> x402Client:
    """The SDK's client with one purse: it spends that token on the local chain and nothing else."""
    client = x402Client()
    register_exact_svm_client(client, KeypairSigner(account), networks=NETWORK, rpc_url=rpc_url)
    client.set_spend_controls({"allowed_assets": [{"network": NETWORK, "asset": mint}]})
    return client


def paying_client(account: Keypair, rpc_url: str, **httpx_options: Any) -> httpx.AsyncClient:
    """The SDK's httpx client: it answers a 402 by paying and asking again. Close it after use."""
    return x402HttpxClient(make_x402_client(account, rpc_url), **({"timeout": 60} | httpx_options))


def require(pay_to: object, fee_payer: object, amount: int = 10_000, **changes: Any) -> PaymentRequirements:
    """What a seller asks for on the local chain; `changes` replace single fields."""
    fields: dict[str, Any] = {
        "scheme": "exact",
        "network": NETWORK,
        "asset": MINT,
        "amount": str(amount),
        "pay_to": str(pay_to),
        "max_timeout_seconds": 60,
        "extra": {"feePayer": str(fee_payer)},
    }
    return PaymentRequirements(**(fields | changes))


async def sign(account: Keypair, rpc_url: str, requirements: PaymentRequirements) -> PaymentPayload:
    """The payment that the SDK's client signs for these requirements."""
    client = make_x402_client(account, rpc_url, requirements.asset)
    payload = await client.create_payment_payload(PaymentRequired(accepts=[requirements]))
    assert isinstance(payload, PaymentPayload)
    return payload
