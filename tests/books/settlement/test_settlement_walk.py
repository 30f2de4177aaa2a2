"""A random walk over everything that can happen to commands, beside a model; the database holds it too."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg.errors import RestrictViolation

from tollbook.books.settlement import commands, endings, intake
from tollbook.books.settlement.errors import CommandReused
from tollbook.books.settlement.requests import CommandRequest, read
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.errors import Refusal

PAYEE = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
TOKEN = "0x" + "12" * 20
HASH = "0x" + "ab" * 32
CHOICE = st.integers(0, 3)
STATUSES = st.sampled_from([
    "received", "validated", "executed", "settled", "refused", "failed", "expired", "cancelled",
])  # fmt: skip
LEGAL = {
    "received": {"validated", "refused", "cancelled", "expired"},
    "validated": {"executed", "refused", "cancelled", "expired"},
    "executed": {"settled", "failed", "cancelled"},
    "failed": {"validated"},
    "settled": {"executed"},
}


@dataclass
class Model:
    """What a command should be."""

    over: bool
    amount: str
    status: str = "received"
    round: int = 0
    asked_back: bool = False
    passed: list[str] = field(default_factory=lambda: ["received"])

    def move(self, status: str) -> None:
        self.status = status
        self.passed.append(status)


class Walk(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.models: dict[str, Model] = {}
        self.raw = psycopg.connect(self.url, autocommit=True)
        self.raw.execute("TRUNCATE settlement.settlement_commands, settlement.spending CASCADE")
        self.seen = self.raw.execute("SELECT coalesce(max(entry_id), 0) FROM core.journal").fetchone()
        self.database = self.runner.run(Database(self.url).__aenter__())

    def teardown(self) -> None:
        self.runner.run(self.database.__aexit__())
        self.runner.close()
        self.raw.close()

    def write(self, verb: Any, *arguments: Any, **options: Any) -> Any:
        """Run one verb in a transaction; what it gave, or the refusal."""

        async def run() -> Any:
            try:
                async with self.database.write() as tx:
                    return await verb(tx, *arguments, now=clock.now(), **options)
            except Refusal as refusal:
                return refusal

        return self.runner.run(run())

    def choose(self, choice: int) -> tuple[str, Model]:
        name = f"c{choice}"
        return name, self.models.get(name) or Model(over=False, amount="", status="")

    @rule(choice=CHOICE, over=st.booleans(), amount=st.sampled_from(["1", "2.5"]), many=st.booleans())
    def receive(self, choice: int, over: bool, amount: str, many: bool) -> None:
        name, model = self.choose(choice)
        request = CommandRequest(command_id=name, amount=amount, payee=PAYEE)
        order = read(request)._replace(expires_at=clock.now() - timedelta(hours=1) if over else None)

        async def take() -> Any:
            if many:
                (found,) = await intake.take_all(self.database, [order])
                return found
            try:
                return await intake.take(self.database, order)
            except Refusal as refusal:
                return refusal

        answer = self.runner.run(take())
        if not model.status:
            assert answer == intake.Received(name, replayed=False)
            self.models[name] = Model(over, amount)
        elif model.amount == amount:
            assert answer == intake.Received(name, replayed=True)
        else:
            assert isinstance(answer, CommandReused)

    @rule(choice=CHOICE)
    def validate(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = self.write(
            commands.validate, name, network="eip155:31337", asset=TOKEN, decimals=6, amount_minor=5
        )
        self.expect(done, model, {"received"}, "validated", unless=model.over)

    @rule(choice=CHOICE)
    def begin(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = self.write(commands.begin, name, next_attempt_at=clock.now())
        self.expect(done, model, {"validated"}, "executed", unless=model.over)

    @rule(choice=CHOICE)
    def refuse(self, choice: int) -> None:
        name, model = self.choose(choice)
        self.expect(self.write(commands.refuse, name, "no"), model, {"received", "validated"}, "refused")

    @rule(choice=CHOICE)
    def expire(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = self.write(commands.expire, name)
        self.expect(done, model, {"received", "validated"}, "expired", unless=not model.over)

    @rule(choice=CHOICE)
    def settle(self, choice: int) -> None:
        name, model = self.choose(choice)
        self.expect(self.write(commands.settle, name, tx_hash=HASH), model, {"executed"}, "settled")

    @rule(choice=CHOICE)
    def fail(self, choice: int) -> None:
        name, model = self.choose(choice)
        self.expect(self.write(commands.fail, name, "reverted"), model, {"executed"}, "failed")

    @rule(choice=CHOICE)
    def reopen(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = self.write(commands.reopen, name, "taken back", tx_hash=HASH)
        self.expect(done, model, {"settled"}, "executed")

    @rule(choice=CHOICE)
    def cancel(self, choice: int) -> None:
        """Of the rounds before a worker has to see that nothing of them can come."""
        name, model = self.choose(choice)
        answer = self.write(endings.cancel, name, None)
        model.asked_back |= model.status == "executed"
        done = not isinstance(answer, Refusal) and answer.status == "cancelled"
        allowed = {"received", "validated"} | ({"executed"} if model.round == 0 else set[str]())
        self.expect(done, model, allowed, "cancelled")

    @rule(choice=CHOICE)
    def take_back(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = self.write(commands.take_back, name)
        self.expect(done, model, {"executed"}, "cancelled", unless=not model.asked_back)

    @rule(choice=CHOICE)
    def retry(self, choice: int) -> None:
        name, model = self.choose(choice)
        done = not isinstance(self.write(commands.retry, name), Refusal)
        self.expect(done, model, {"failed"}, "validated", unless=model.over)
        model.round += done
        model.asked_back &= not done

    @rule(choice=CHOICE, wanted=STATUSES)
    def step_by_hand(self, choice: int, wanted: str) -> None:
        """Whoever writes SQL takes legal steps or none; what else a step asks for, the checks do."""
        name, model = self.choose(choice)
        if model.status and wanted != model.status and wanted not in LEGAL.get(model.status, ()):
            with pytest.raises(RestrictViolation):
                self.raw.execute(
                    "UPDATE settlement.settlement_commands SET status = %s WHERE command_id = %s",
                    (wanted, name),
                )

    def expect(
        self, done: bool, model: Model, allowed: set[str], status: str, *, unless: bool = False
    ) -> None:
        assert done == (model.status in allowed and not unless)
        if done:
            model.move(status)

    @invariant()
    def is_as_the_model(self) -> None:
        rows = self.raw.execute(
            """
            SELECT command_id, status, round, (
                SELECT array_agg(m.to_status ORDER BY m.move_id) FROM settlement.command_moves m
                WHERE m.command_id = c.command_id AND m.from_status IS NOT NULL),
                (SELECT array_agg(j.kind ORDER BY j.entry_id) FROM core.journal j
                 WHERE j.book = 'settlement' AND j.subject = c.command_id AND j.entry_id > %s)
            FROM settlement.settlement_commands c
            """,
            self.seen,
        ).fetchall()
        assert {row[0] for row in rows} == self.models.keys()
        for name, status, round_, moves, told in rows:
            model = self.models[name]
            assert (status, round_) == (model.status, model.round)
            assert ["received", *(moves or [])] == model.passed
            assert len(told) == len(model.passed)
            assert [_word(one) for one in told] == model.passed


def _word(kind: str) -> str:
    return {"confirmed": "settled", "reopened": "executed"}.get(kind, kind)


def test_whatever_happens_to_commands_they_are_what_the_model_says(database_url: str) -> None:
    Walk.url = database_url
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
