"""A facilitator that is killed while it settles: the next one finishes what it began, and it moved once."""

import asyncio
import multiprocessing
import time

import psycopg
import pytest
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentPayload, PaymentRequirements

from clients.pay import sign
from fixtures.facilitator import key_of, settle_in_another_process
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator, SettlementUnknown
from tollbook.core.local_chain import NETWORK, LocalChain

PAYMENTS = 8
SECONDS_MAX = 60


def wait_for_rows(database_url: str, status: str, count: int) -> None:
    """Return when so many of its transactions came so far, or all of them further."""
    order = ["reserved", "signed", "sent", "mined"]
    reached = order[order.index(status) :]
    deadline = time.monotonic() + SECONDS_MAX
    with psycopg.connect(database_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT count(*) FROM core.transactions WHERE status = ANY (%s)", (reached,)
            ).fetchone()
            if row is not None and row[0] >= count:
                return
    raise AssertionError(f"no {count} transactions came to be {status}")


@pytest.mark.parametrize("status", ["reserved", "signed", "sent", "mined"])
async def test_what_a_killed_facilitator_began_is_settled_once_by_the_next(
    chain: LocalChain,
    operator: LocalAccount,
    payer: LocalAccount,
    seller: LocalAccount,
    database_url: str,
    requirements: PaymentRequirements,
    status: str,
) -> None:
    payloads = [await sign(payer, requirements) for _ in range(PAYMENTS)]
    bodies = [payload.model_dump_json(by_alias=True) for payload in payloads]
    victim = multiprocessing.get_context("spawn").Process(
        target=settle_in_another_process, args=(chain.url, key_of(operator), database_url, bodies)
    )
    victim.start()
    await asyncio.to_thread(wait_for_rows, database_url, status, 1)
    victim.kill()
    await asyncio.to_thread(victim.join)
    facilitator = InProcessFacilitator({NETWORK: chain.url}, key_of(operator), database_url)
    await facilitator.open()

    async def settle_patiently(payload: PaymentPayload) -> str:
        for _ in range(5):
            try:
                answer = await facilitator.settle(payload, requirements)
            except SettlementUnknown:
                continue
            assert answer.success, answer
            return answer.transaction
        raise AssertionError("it stayed unknown")

    hashes = await asyncio.gather(*(settle_patiently(payload) for payload in payloads))
    await facilitator.aclose()
    assert len(set(hashes)) == PAYMENTS
    assert chain.read_balance(seller.address) == PAYMENTS * 10_000
    assert int(chain.call("eth_getTransactionCount", operator.address, "latest"), 16) == PAYMENTS
