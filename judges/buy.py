"""One purchase, as hostile-facilitator runs it: the SDK's client buys where the facilitator is hostile.

Under the unmodified client lies a transport that obeys Retry-After by sending the same request again; above
it a buyer as stubborn as agents are: whatever is not the goods makes it buy anew, with a new payment.
"""

import asyncio
import json
import os
from pathlib import Path

import httpx
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.mechanisms.evm.exact import register_exact_evm_client  # pyright: ignore[reportUnknownVariableType]
from x402.mechanisms.evm.signers import EthAccountSigner

import stage

NETWORK = "base-sepolia"  # what the hostile facilitator says it serves
NETWORK_ID = "eip155:84532"
PURCHASES_MAX = 3
REPEATS_MAX = 5
WAIT_SECONDS_MAX = 5.0
BUSY = (409, 503)
OK = 200


class Patient(httpx.AsyncBaseTransport):
    """Sends a request again where the answer names a time to come back."""

    def __init__(self, below: httpx.AsyncBaseTransport) -> None:
        self._below = below
        self.statuses: list[int] = []
        self.payments: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the first answer that is final, or the last one."""
        response = await self._send(request)
        for _ in range(REPEATS_MAX):
            if response.status_code not in BUSY or "Retry-After" not in response.headers:
                break
            await response.aread()
            await asyncio.sleep(min(float(response.headers["Retry-After"]), WAIT_SECONDS_MAX))
            response = await self._send(request)
        return response

    async def _send(self, request: httpx.Request) -> httpx.Response:
        response = await self._below.handle_async_request(request)
        self.statuses.append(response.status_code)
        self.payments.add(request.headers.get("PAYMENT-SIGNATURE", ""))
        return response


async def buy(
    facilitator_url: str, database_url: str, settle: stage.Settle, seconds: float
) -> dict[str, object]:
    """Return what became of the purchase: the statuses seen, the payments made, the deliveries got."""
    pay_to = Account.create().address
    shop = stage.make_shop(database_url, facilitator_url, NETWORK, pay_to, settle, seconds)
    payer = x402Client()
    register_exact_evm_client(payer, EthAccountSigner(Account.create()), networks=NETWORK_ID)
    patient = Patient(httpx.ASGITransport(shop, raise_app_exceptions=False))
    deliveries: list[int] = []
    try:
        async with httpx.AsyncClient(
            transport=x402AsyncTransport(payer, patient), base_url="http://shop.test"
        ) as client:
            for _ in range(PURCHASES_MAX):
                response = await client.get(stage.PATH)
                if response.status_code == OK:
                    deliveries.append(response.json()["delivery"])
                    break
    finally:
        await shop.close()
    return {
        "statuses": patient.statuses,
        "payments": len(patient.payments - {""}),
        "deliveries": deliveries,
    }


def main() -> None:
    """Buy once, by what the environment says, and add a line to the file JUDGES_OUTCOMES."""
    # The seller gives up on its facilitator when the judge assumes that it does.
    seconds = float(os.environ["HOSTILE_CLIENT_TIMEOUT"])
    settle: stage.Settle = "before" if os.environ["JUDGES_SETTLE"] == "before" else "after"
    url, database_url = os.environ["FACILITATOR_URL"], os.environ["JUDGES_DATABASE_URL"]
    outcome = asyncio.run(buy(url, database_url, settle, seconds))
    with Path(os.environ["JUDGES_OUTCOMES"]).open("a") as report:
        report.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
