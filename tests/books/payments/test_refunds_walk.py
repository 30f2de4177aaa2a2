"""Refunds asked for, sent, failed and found on the chain in any order: never more than was paid."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.payments import pay
from fixtures.reconciling import make_hash
from tollbook.books.payments import forgotten_refunds, payments, refund_marks, refunds
from tollbook.books.payments.payments import Payment
from tollbook.books.payments.refund_marks import MarkedTransfer
from tollbook.core import clock, ids
from tollbook.core.database import Database, WriteTx
from tollbook.core.errors import Refusal

PAID = 6
OPERATOR = "0x" + "33" * 20
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, PAID)),
        st.tuples(st.just("ask all"), st.just(0)),
        st.tuples(st.sampled_from(["send", "land", "fail", "land and forget"]), st.integers(0, 3)),
        st.tuples(st.just("forgotten"), st.integers(1, PAID)),
        st.tuples(st.just("seen again"), st.integers(0, 3)),
    ),
    max_size=12,
)


class Walk:
    """One payment, and what its chain shows of its refunds."""

    def __init__(self, payment: Payment) -> None:
        self.payment = payment
        self.shown: list[MarkedTransfer] = []

    async def take(self, tx: WriteTx, step: str, number: int) -> None:
        now = clock.now()
        rows = await refunds.page(tx, payment_id=self.payment.payment_id)
        row = rows[number % len(rows)] if rows else None
        if step in ("ask", "ask all"):
            amount = number if step == "ask" else None
            with suppress(Refusal):
                await refunds.request(tx, self.payment.payment_id, amount=amount, reason=None, now=now)
        elif step == "forgotten" and sum(each.amount for each in self.shown) + number <= PAID:
            self.show(ids.make(), number)
            await forgotten_refunds.book(tx, self.shown[-1], now=now)
        elif step == "seen again" and self.shown:
            await forgotten_refunds.book(tx, self.shown[number % len(self.shown)], now=now)
        elif step == "send" and row is not None:
            await refunds.mark_sent(tx, row.refund_id, now=now)
        elif step == "fail" and row is not None and row.status == "requested":
            await refunds.fail(tx, row.refund_id, "a test", was="requested", now=now)
        elif step.startswith("land") and row is not None and row.status == "sent":
            self.show(row.refund_id, row.amount)
            if step == "land":  # else it is seen by its mark, later or never
                await forgotten_refunds.book(tx, self.shown[-1], now=now)

    def show(self, refund_id: int, amount: int) -> None:
        if refund_id in [each.refund_id for each in self.shown]:
            return
        payment = self.payment
        self.shown.append(
            MarkedTransfer(
                payment.network,
                payment.asset,
                OPERATOR,
                payment.from_address,
                amount,
                make_hash(),
                7,
                refund_marks.make(payment, refund_id),
            )
        )

    async def check(self, tx: WriteTx) -> None:
        rows = await refunds.page(tx, payment_id=self.payment.payment_id)
        payment = await payments.get(tx, self.payment.payment_id)
        asked = await tx.value(
            "SELECT refund_asked FROM payments.x402_payments WHERE payment_id = %(id)s",
            {"id": payment.payment_id},
        )
        done = [row for row in rows if row.status == "done"]
        assert int(asked) == sum(row.amount for row in rows if row.status != "failed") <= PAID
        assert payment.refunded_amount == sum(row.amount for row in done)
        assert (payment.settlement == "refunded") == (payment.refunded_amount == PAID)
        assert len({row.tx_hash for row in done}) == len(done)
        assert {row.tx_hash for row in done} <= {each.tx_hash for each in self.shown}


@given(walks=st.lists(STEPS, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_sent_and_found_no_more_goes_back_than_came(
    database_url: str, walks: Sequence[list[tuple[str, int]]]
) -> None:
    async def live() -> None:
        async with Database(database_url) as database:
            for steps in walks:
                walk = Walk(await pay(database, amount=PAID))
                for step, number in steps:
                    async with database.write() as tx:
                        await walk.take(tx, step, number)
                        await walk.check(tx)

    asyncio.run(live())
