"""A random walk over everything that can happen to payments, beside a model of a few lines."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fixtures.payments import ENDPOINT, make_offer, refund
from tollbook.books.payments import payments, tokens
from tollbook.books.payments.errors import (
    AlreadyCounted,
    PaymentNotInState,
    TokenExpired,
    TokenRevoked,
    TokenSpent,
)
from tollbook.books.payments.usage import Meter
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

PAYERS = 3
QUOTA = 2
CHOICE = st.integers(0, 5)


@dataclass
class Model:
    """What a payment should be."""

    payment_id: int
    payer: int
    status: str = "pending"
    settlement: str = "pending"
    used: int = 0
    answered: int = 0
    over: bool = False
    secret: str | None = None
    revoked: str | None = None


class Walk(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.models: list[Model] = []
        with psycopg.connect(self.url) as connection:
            connection.execute("TRUNCATE payments.x402_payments, payments.x402_usage CASCADE")
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.database = await Database(self.url).__aenter__()
        self.meter = await Meter(self.url).__aenter__()

    def teardown(self) -> None:
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        await self.meter.close()
        await self.database.__aexit__()

    def write(self, verb: Any, *arguments: Any, **options: Any) -> Any:
        """Run one verb in a transaction; what it gave, or the refusal."""

        async def run() -> Any:
            try:
                async with self.database.write() as tx:
                    return await verb(tx, *arguments, **options)
            except Refusal as refusal:
                return refusal

        return self.runner.run(run())

    def choose(self, choice: int) -> Model | None:
        return self.models[choice % len(self.models)] if self.models else None

    @rule(payer=st.integers(0, PAYERS - 1))
    def reserve(self, payer: int) -> None:
        offer = make_offer(
            from_address=f"0x{payer:040x}",
            nonce=f"0x{payer:064x}",
            requests_allocated=QUOTA,
            valid_before=None,
        )
        answer = self.write(payments.reserve, offer, now=clock.now())
        taken = [model for model in self.models if model.payer == payer and model.status != "failed"]
        if taken:
            assert isinstance(answer, AlreadyCounted)
            assert answer.payment_id == taken[0].payment_id
        else:
            self.models.append(Model(answer.payment_id, payer))

    @rule(choice=CHOICE, over=st.booleans())
    def settle(self, choice: int, over: bool) -> None:
        if model := self.choose(choice):
            now = clock.now() - timedelta(hours=2 if over else 0)
            answer = self.write(
                payments.settle, model.payment_id, tx_hash=None, block_number=1, confirmations=1, now=now
            )
            if model.status == "pending":
                model.status, model.settlement, model.over = "verified", "settled", over
            else:
                assert isinstance(answer, PaymentNotInState)

    @rule(choice=CHOICE)
    def fail(self, choice: int) -> None:
        if model := self.choose(choice):
            answer = self.write(payments.fail, model.payment_id, "no", now=clock.now())
            if model.status == "pending":
                model.status, model.settlement = "failed", "failed"
            else:
                assert isinstance(answer, PaymentNotInState)

    @rule(choice=CHOICE)
    def suspect(self, choice: int) -> None:
        if model := self.choose(choice):
            answer = self.write(payments.suspect, model.payment_id, "no answer", None, now=clock.now())
            if (model.status, model.settlement) == ("pending", "pending"):
                model.settlement = "unknown"
            else:
                assert isinstance(answer, PaymentNotInState)

    @rule(choice=CHOICE)
    def refund(self, choice: int) -> None:
        if model := self.choose(choice):
            answer = self.write(refund, model.payment_id)
            if model.settlement == "settled":
                model.status, model.settlement = "expired", "refunded"
            else:
                assert isinstance(answer, PaymentNotInState)

    @rule(choice=CHOICE)
    def rotate(self, choice: int) -> None:
        if model := self.choose(choice):
            answer = self.write(tokens.rotate, model.payment_id, now=clock.now())
            if model.status in ("verified", "used") and not model.over:
                model.revoked, model.secret = model.secret, answer.secret
            else:
                assert isinstance(answer, PaymentNotInState)

    @rule()
    def clean_up(self) -> None:
        async def clean(tx: Any) -> int:
            return await tx.value("SELECT payments.cleanup_expired_x402_payments()")

        due = [model for model in self.models if model.status in ("verified", "used") and model.over]
        assert self.write(clean) == len(due)
        for model in due:
            model.status = "expired"

    @rule(choice=CHOICE, status_code=st.sampled_from([200, 200, 404, 500]))
    def use(self, choice: int, status_code: int) -> None:
        model = self.choose(choice)
        if model is None or model.secret is None:
            return
        answer = self._use(model.secret, status_code)
        if model.status == "expired" or model.over:
            assert isinstance(answer, TokenExpired)
        elif model.used == QUOTA:
            assert isinstance(answer, TokenSpent)
        else:
            assert not isinstance(answer, Refusal)
            model.answered += 1
            model.used += status_code < 500
            model.status = "used" if model.used == QUOTA else "verified"

    @rule(choice=CHOICE)
    def use_what_was_revoked(self, choice: int) -> None:
        model = self.choose(choice)
        if model and model.revoked:
            assert isinstance(self._use(model.revoked, 200), TokenRevoked)

    def _use(self, secret: str, status_code: int) -> Any:
        async def run() -> Any:
            try:
                admission = await self.meter.admit(tokens.hash_secret(secret), ENDPOINT)
            except Refusal as refusal:
                return refusal
            await self.meter.record(admission, endpoint=ENDPOINT, status_code=status_code, response_time_ms=1)
            return admission

        return self.runner.run(run())

    @invariant()
    def the_book_is_as_the_model(self) -> None:
        with psycopg.connect(self.url) as connection:
            rows = connection.execute(
                """
                SELECT payment_id, status, settlement, requests_used,
                       (SELECT count(*) FROM payments.x402_usage u WHERE u.payment_id = p.payment_id),
                       (SELECT sum(CASE kind WHEN 'payment.settled' THEN amount
                                             WHEN 'payment.refunded' THEN -amount ELSE 0 END)
                        FROM core.journal WHERE subject = p.payment_id::text) =
                       (CASE settlement WHEN 'settled' THEN amount ELSE 0 END)
                FROM payments.x402_payments p ORDER BY payment_id
                """
            ).fetchall()
        assert rows == [
            (model.payment_id, model.status, model.settlement, model.used, model.answered, True)
            for model in sorted(self.models, key=lambda model: model.payment_id)
        ]


def test_any_walk_over_the_verbs_keeps_the_book_right(database_url: str) -> None:
    machine = type("WalkHere", (Walk,), {"url": database_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
