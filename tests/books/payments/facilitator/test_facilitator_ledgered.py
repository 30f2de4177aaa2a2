"""The ledger: intent before, end after, one facilitator for one payment, and three outcomes."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from eth_account import Account
from x402.schemas import PaymentPayload, SettleResponse, SupportedResponse, VerifyResponse

from clients.pay import require, sign
from tollbook.books.payments.facilitator import ledgered as facilitator_ledgered
from tollbook.books.payments.facilitator.in_process import FacilitatorUnreachable, SettlementUnknown
from tollbook.books.payments.facilitator.ledgered import (
    ASK_ATTEMPTS_MAX,
    FAILURES_MAX,
    LedgeredFacilitator,
    SettlementConflict,
    SettlementInProgress,
)
from tollbook.books.payments.ledger import HOLD, Verdict
from tollbook.core import clock
from tollbook.core.chains import ChainUnreachable
from tollbook.core.database import Database
from tollbook.core.errors import DatabaseUnreachable
from tollbook.core.local_chain import NETWORK

ASSET = "0x" + "42" * 20
SELLER = "0x" + "43" * 20
UNREACHABLE = FacilitatorUnreachable("it is down")
UNKNOWN = SettlementUnknown(NETWORK, "0x" + "77" * 32, "settlement_pending", "its answer is lost")


def settled(payload: PaymentPayload) -> SettleResponse:
    return SettleResponse(success=True, transaction="0x" + secrets.token_hex(32), network=NETWORK)


def refused(payload: PaymentPayload) -> SettleResponse:
    return SettleResponse(success=False, transaction="", network=NETWORK, error_reason="insufficient_funds")


@dataclass
class Actor:
    """A facilitator that plays its part line by line; the last line for ever. It moves no money."""

    lines: list[Exception | Callable[[PaymentPayload], SettleResponse]]
    asked: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    down: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    async def verify(self, payload: Any, requirements: Any) -> VerifyResponse:
        if self.down:
            raise UNREACHABLE
        return VerifyResponse(is_valid=True)

    async def settle(self, payload: Any, requirements: Any) -> SettleResponse:
        self.asked += 1
        await self.gate.wait()
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        if isinstance(line, Exception):
            raise line
        return line(payload)

    async def supported(self) -> SupportedResponse:
        if self.down:
            raise UNREACHABLE
        return SupportedResponse(kinds=[], signers={"eip155:*": [SELLER]})

    async def aclose(self) -> None:
        pass


@dataclass
class Oracle:
    """A chain that says what it is told to say."""

    verdict: Verdict | Exception | None = None

    async def find(self, settlement: Any) -> Verdict | None:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


async def make_payment(**changes: Any) -> tuple[PaymentPayload, Any]:
    requirements = require(ASSET, SELLER, **changes)
    return await sign(Account.create(), requirements), requirements


async def read(database: Database) -> list[dict[str, Any]]:
    async with database.read() as tx:
        return await tx.dicts(
            "SELECT status, facilitator, asks, reason, tx_hash FROM payments.x402_settlements"
        )


async def read_held_until(database: Database) -> datetime:
    async with database.read() as tx:
        return await tx.value("SELECT held_until FROM payments.x402_settlements")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facilitator_ledgered, "ASK_WAIT_SECONDS_MAX", 0.01)
    monkeypatch.setattr(facilitator_ledgered, "BOOKING_WAIT_SECONDS_MAX", 0.01)


async def test_the_intent_is_on_disk_before_a_facilitator_hears_of_it(database: Database) -> None:
    actor = Actor([settled])
    actor.gate.clear()
    running = asyncio.create_task(LedgeredFacilitator(database, {"a": actor}).settle(*await make_payment()))
    while not actor.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert [(row["status"], row["facilitator"]) for row in await read(database)] == [("pending", "a")]
    actor.gate.set()
    assert (await running).success
    assert [row["status"] for row in await read(database)] == ["settled"]


async def test_a_settled_payment_is_answered_again_without_asking(database: Database) -> None:
    actor, payment = Actor([settled]), await make_payment()
    first = await LedgeredFacilitator(database, {"a": actor}).settle(*payment)
    again = await LedgeredFacilitator(database, {"b": Actor([UNKNOWN])}).settle(*payment)
    assert again == first
    assert actor.asked == 1


async def test_ten_copies_at_once_ask_once(database: Database) -> None:
    actor, payment = Actor([settled]), await make_payment()
    actor.gate.clear()
    ledgers = [LedgeredFacilitator(database, {"a": actor}) for _ in range(10)]
    running = [asyncio.create_task(each.settle(*payment)) for each in ledgers]
    done, _ = await asyncio.wait(running, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert done
    while sum(task.done() for task in running) < 9:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    actor.gate.set()
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert sum(isinstance(outcome, SettlementInProgress) for outcome in outcomes) == 9
    assert actor.asked == 1


async def test_row_j_one_that_is_down_is_tried_again_and_then_the_next_is_asked(database: Database) -> None:
    down, up = Actor([UNREACHABLE]), Actor([settled])
    answer = await LedgeredFacilitator(database, {"a": down, "b": up}).settle(*await make_payment())
    assert answer.success
    assert (down.asked, up.asked) == (ASK_ATTEMPTS_MAX, 1)
    assert [row["facilitator"] for row in await read(database)] == ["b"]


async def test_where_one_may_have_settled_no_other_is_asked(database: Database) -> None:
    first, second, payment = Actor([UNKNOWN]), Actor([settled]), await make_payment()
    ledgered = LedgeredFacilitator(database, {"a": first, "b": second})
    for _ in range(3):
        with pytest.raises(SettlementUnknown):
            await ledgered.settle(*payment)
    assert (first.asked, second.asked) == (3, 0)
    (row,) = await read(database)
    assert (row["status"], row["tx_hash"]) == ("unknown", UNKNOWN.transaction)


async def test_what_was_unknown_is_settled_when_the_same_one_says_so(database: Database) -> None:
    payment = await make_payment()
    ledgered = LedgeredFacilitator(database, {"a": Actor([UNKNOWN, settled])})
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*payment)
    assert (await ledgered.settle(*payment)).success
    assert [row["status"] for row in await read(database)] == ["settled"]


@pytest.mark.parametrize("line", [refused, UNREACHABLE, RuntimeError("a bug")])
async def test_after_an_unknown_end_no_later_word_makes_it_failed(database: Database, line: Any) -> None:
    payment = await make_payment()
    ledgered = LedgeredFacilitator(database, {"a": Actor([UNKNOWN, line])})
    for _ in range(2):
        with pytest.raises(SettlementUnknown):
            await ledgered.settle(*payment)
    assert [row["status"] for row in await read(database)] == ["unknown"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TimeoutError(), ValueError("0xsecret")])
async def test_an_unexpected_error_is_not_a_failed_settlement(database: Database, error: Exception) -> None:
    with pytest.raises(SettlementUnknown) as unknown:
        await LedgeredFacilitator(database, {"a": Actor([error])}).settle(*await make_payment())
    assert "0xsecret" not in str(unknown.value)
    assert [row["status"] for row in await read(database)] == ["unknown"]


async def test_a_refused_payment_may_be_tried_again_elsewhere(database: Database) -> None:
    payment = await make_payment()
    assert not (await LedgeredFacilitator(database, {"a": Actor([refused])}).settle(*payment)).success
    assert [(row["status"], row["reason"]) for row in await read(database)] == [
        ("failed", "insufficient_funds")
    ]
    assert (await LedgeredFacilitator(database, {"b": Actor([settled])}).settle(*payment)).success
    assert [(row["status"], row["facilitator"], row["asks"]) for row in await read(database)] == [
        ("settled", "b", 2)
    ]


async def test_the_chain_settles_what_a_facilitator_left_open(database: Database) -> None:
    actor, payment, oracle = Actor([UNKNOWN]), await make_payment(), Oracle()
    ledgered = LedgeredFacilitator(database, {"a": actor}, oracle)
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*payment)
    oracle.verdict = ChainUnreachable(NETWORK, "http://127.0.0.1", "it is down")
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*payment)
    oracle.verdict = Verdict("settled", tx_hash="0x" + "88" * 32, block_number=7, amount_moved=10_000)
    answer = await ledgered.settle(*payment)
    assert (answer.success, answer.transaction) == (True, "0x" + "88" * 32)
    assert actor.asked == 2


async def test_a_nonce_that_was_spent_on_less_buys_nothing(database: Database) -> None:
    payment = await make_payment()
    oracle = Oracle(Verdict("settled", tx_hash="0x" + "88" * 32, block_number=7, amount_moved=1))
    ledgered = LedgeredFacilitator(database, {"a": Actor([UNKNOWN])}, oracle)
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*payment)
    for _ in range(2):  # from the chain, and then from the ledger
        answer = await ledgered.settle(*payment)
        assert (answer.success, answer.transaction, answer.amount) == (False, "0x" + "88" * 32, "1")


async def test_the_chain_says_that_it_never_will_be(database: Database) -> None:
    payment, oracle = await make_payment(), Oracle(Verdict("not settled", reason="it ran out"))
    ledgered = LedgeredFacilitator(database, {"a": Actor([UNKNOWN])}, oracle)
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*payment)
    answer = await ledgered.settle(*payment)
    assert (answer.success, answer.error_reason) == (False, "it ran out")
    assert [row["status"] for row in await read(database)] == ["failed"]


async def test_a_holder_that_is_never_heard_of_again_leaves_it_unknown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, payment = Actor([settled]), await make_payment()
    actor.gate.clear()
    lost = asyncio.create_task(LedgeredFacilitator(database, {"a": actor}).settle(*payment))
    while not actor.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    lost.cancel()
    await asyncio.wait([lost])
    actor.gate.set()
    ledgered = LedgeredFacilitator(database, {"a": actor, "b": Actor([settled])})
    with pytest.raises(SettlementInProgress):
        await ledgered.settle(*payment)
    later = clock.now() + HOLD + timedelta(seconds=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert (await ledgered.settle(*payment)).success
    assert [(row["status"], row["facilitator"]) for row in await read(database)] == [("settled", "a")]


@pytest.mark.parametrize("line", [UNREACHABLE, refused])
async def test_who_was_taken_over_does_not_call_it_failed(database: Database, line: Any) -> None:
    payment, actor = await make_payment(), Actor([settled])
    first = LedgeredFacilitator(database, {"a": Actor([line])})
    row = await first.take(*payment, timedelta(0))
    actor.gate.clear()
    second = asyncio.create_task(LedgeredFacilitator(database, {"a": actor}).settle(*payment))
    while not actor.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(SettlementInProgress):
        await first.settle_taken(row, *payment)
    assert [row["status"] for row in await read(database)] == ["unknown"]
    actor.gate.set()
    assert (await second).success
    assert [row["status"] for row in await read(database)] == ["settled"]


async def test_row_i_a_database_that_goes_away_after_the_money_moved_is_unknown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await make_payment()

    def go_away(payload: PaymentPayload) -> SettleResponse:
        monkeypatch.setattr(Database, "write", unreachable)
        return settled(payload)

    def unreachable(_: Database) -> Any:
        raise DatabaseUnreachable("postgresql://user:s3cret@127.0.0.1 does not answer")

    ledgered = LedgeredFacilitator(database, {"a": Actor([go_away, settled])})
    with pytest.raises(SettlementUnknown) as unknown:
        await ledgered.settle(*payment)
    assert "s3cret" not in str(unknown.value)
    monkeypatch.undo()
    later = clock.now() + HOLD + timedelta(seconds=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert (await ledgered.settle(*payment)).success


@pytest.mark.parametrize(
    "answer",
    [
        {"transaction": "", "network": NETWORK},
        {"transaction": "0x" + "11" * 32, "network": "eip155:1"},
        {"transaction": "0x" + "11" * 32, "network": NETWORK, "amount": "0.01"},
        {"transaction": "0x" + "11" * 32, "network": NETWORK, "amount": "9999"},
        {"transaction": "0x" + "11" * 32, "network": NETWORK, "amount": "9" * 79},
    ],
)
async def test_a_success_that_names_no_transaction_here_or_no_such_amount_is_unknown(
    database: Database, answer: dict[str, Any]
) -> None:
    ledgered = LedgeredFacilitator(database, {"a": Actor([lambda _: SettleResponse(success=True, **answer)])})
    with pytest.raises(SettlementUnknown):
        await ledgered.settle(*await make_payment())
    assert [row["status"] for row in await read(database)] == ["unknown"]


async def test_an_authorization_presented_for_another_recipient_is_a_conflict(database: Database) -> None:
    payload, requirements = await make_payment()
    ledgered = LedgeredFacilitator(database, {"a": Actor([settled])})
    await ledgered.settle(payload, requirements)
    with pytest.raises(SettlementConflict):
        await ledgered.settle(payload, requirements.model_copy(update={"pay_to": "0x" + "44" * 20}))


@pytest.mark.parametrize("line", [settled, UNKNOWN])
async def test_another_authorization_with_the_same_nonce_is_a_conflict(database: Database, line: Any) -> None:
    """A cheap payment that is settled, or perhaps, does not pay for a dear one."""
    payer, nonce = Account.create(), "0x" + secrets.token_hex(32)
    cheap, dear = [
        (await sign(payer, each), each) for each in (require(ASSET, SELLER), require(ASSET, SELLER, 50_000))
    ]
    for payload, _ in (cheap, dear):
        payload.payload["authorization"]["nonce"] = nonce
    ledgered = LedgeredFacilitator(database, {"a": Actor([line, settled])})
    with suppress(SettlementUnknown):
        await ledgered.settle(*cheap)
    with pytest.raises(SettlementConflict):
        await ledgered.settle(*dear)
    assert (await ledgered.settle(*cheap)).success


async def test_one_that_is_down_is_left_alone_for_a_while(database: Database) -> None:
    down = Actor([UNREACHABLE])
    ledgered = LedgeredFacilitator(database, {"a": down})
    for _ in range(FAILURES_MAX):
        with pytest.raises(FacilitatorUnreachable):
            await ledgered.settle(*await make_payment())
    asked = down.asked
    with pytest.raises(FacilitatorUnreachable):
        await ledgered.settle(*await make_payment())
    assert down.asked == asked
    payload, requirements = await make_payment()
    elsewhere = requirements.model_copy(update={"network": "eip155:84532"})
    with pytest.raises(FacilitatorUnreachable):  # of another network it is asked
        await ledgered.settle(payload, elsewhere)
    assert down.asked > asked
    assert {row["status"] for row in await read(database)} == {"failed"}


async def test_what_was_supported_outlives_a_restart_and_an_outage(database: Database) -> None:
    actor = Actor([settled])
    first = await LedgeredFacilitator(database, {"a": actor}).supported()
    actor.down = True
    assert await LedgeredFacilitator(database, {"a": actor}).supported() == first
    with pytest.raises(FacilitatorUnreachable):
        await LedgeredFacilitator(database, {"never asked": actor}).supported()


async def test_a_settlement_that_takes_long_is_held_as_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facilitator_ledgered, "RENEW_SECONDS", 0.02)
    actor, payment = Actor([settled]), await make_payment()
    actor.gate.clear()
    ledgered = LedgeredFacilitator(database, {"a": actor})
    running = asyncio.create_task(ledgered.settle(*payment))
    while not actor.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    began = clock.now()
    for passed in (HOLD * 0.75, HOLD * 1.5):
        now = began + passed
        monkeypatch.setattr(clock, "now", lambda now=now: now)
        while not await read_held_until(database) > now + HOLD * 0.9:
            assert not running.done()
        with pytest.raises(SettlementInProgress):
            await ledgered.settle(*payment)
    actor.gate.set()
    assert (await running).success
    assert actor.asked == 1
