"""The Solana facilitator on the real runtime and real PostgreSQL; and the bare SDK beside it."""

import asyncio
import base64
import json
import multiprocessing
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from solders.keypair import Keypair
from solders.transaction import VersionedTransaction
from x402.mechanisms.svm.constants import (
    ERR_DUPLICATE_SETTLEMENT,
    ERR_SETTLEMENT_PENDING,
    ERR_TRANSACTION_FAILED,
)
from x402.mechanisms.svm.exact.facilitator import ExactSvmScheme
from x402.mechanisms.svm.signers import FacilitatorKeypairSigner
from x402.schemas import PaymentPayload, PaymentRequirements

from fixtures.solana import NETWORK
from fixtures.solana_desk import AMOUNT, EXPIRY_BLOCKS, Desk
from tollbook.books.payments.facilitator.in_process import (
    FacilitatorUnreachable,
    SettlementUnknown,
)
from tollbook.books.payments.solana import payment as solana_payment
from tollbook.books.payments.solana.facilitator import SolanaFacilitator
from tollbook.books.payments.solana.node import ERR_EXPIRED

# The SDK asks nodes through classes that their library means to retire.
pytestmark = pytest.mark.filterwarnings("ignore:(Client|TxOpts) is deprecated")


@pytest.fixture
async def facilitator(desk: Desk) -> AsyncIterator[SolanaFacilitator]:
    async with desk.open() as facilitator:
        yield facilitator


METHODS = [
    "simulateTransaction", "getLatestBlockhash", "sendTransaction", "getSignatureStatuses", "getTransaction",
    "getEpochInfo", "getFirstAvailableBlock",
]  # fmt: skip


async def test_row_n_the_bare_sdk_calls_a_transaction_that_landed_with_an_error_a_success(desk: Desk) -> None:
    requirements = desk.requirements()
    payment = await desk.sign()
    desk.chain.behaviour.before_landing.append(desk.drain)
    scheme = ExactSvmScheme(FacilitatorKeypairSigner(desk.operator, desk.chain.url))
    answer = await asyncio.to_thread(scheme.settle, payment, requirements)
    assert answer.success
    assert desk.earned() == 0


async def test_row_n_a_transaction_that_landed_with_an_error_is_a_failure(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.before_landing.append(desk.drain)
    answer = await facilitator.settle(payment, desk.requirements())
    assert not answer.success
    assert answer.error_reason == ERR_TRANSACTION_FAILED
    assert answer.transaction == desk.chain.sent[0]
    assert "InstructionError" in str(answer.error_message)
    assert desk.earned() == 0
    again = await facilitator.settle(payment, desk.requirements())
    assert again == answer
    assert len(desk.chain.sent) == 1
    assert not (await facilitator.verify(payment, desk.requirements())).is_valid


async def test_a_payment_moves_the_money_and_the_books_say_so(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    told = await facilitator.verify(payment, desk.requirements())
    assert (told.is_valid, told.payer) == (True, str(desk.payer.pubkey()))
    assert desk.rows() == []
    answer = await facilitator.settle(payment, desk.requirements())
    assert answer.success
    assert (answer.network, answer.payer) == (NETWORK, str(desk.payer.pubkey()))
    assert desk.earned() == AMOUNT
    assert desk.rows() == [("settled", answer.transaction, 1, AMOUNT, None)]


async def test_a_settled_payment_verifies_no_more_with_or_without_our_memory(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    assert (await facilitator.settle(payment, desk.requirements())).success
    for _ in range(2):
        told = await facilitator.verify(payment, desk.requirements())
        assert told.invalid_reason == ERR_DUPLICATE_SETTLEMENT
        with psycopg.connect(desk.database_url) as connection:
            connection.execute("TRUNCATE payments.x402_solana_settlements")


async def test_a_node_of_another_network_does_not_end_what_is_under_way(
    desk: Desk, facilitator: SolanaFacilitator, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.chain.behaviour.dropped = True
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(await desk.sign(), desk.requirements())
    desk.chain.advance(EXPIRY_BLOCKS)
    async with desk.open() as restarted:
        monkeypatch.setattr("fixtures.solana_rpc.GENESIS_HASH", "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
        assert await restarted.resolve() == []
        monkeypatch.undo()
        assert [row.status for row in await restarted.resolve()] == ["failed"]


async def test_what_is_supported_names_a_fee_payer_each_in_turn(desk: Desk) -> None:
    other = Keypair()
    keys = [str(desk.operator), json.dumps(list(bytes(other)))]
    async with SolanaFacilitator({NETWORK: desk.chain.url}, keys, desk.database_url) as facilitator:
        named = [(await facilitator.supported()).kinds[0].extra for _ in range(2)]
        signers = (await facilitator.supported()).signers
    addresses = [str(desk.operator.pubkey()), str(other.pubkey())]
    assert named == [{"feePayer": address} for address in addresses]
    assert signers == {"solana:*": addresses}


async def test_ten_parallel_copies_are_broadcast_once_and_answered_alike(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    async with desk.open() as other:
        answers = await asyncio.gather(
            *(each.settle(payment, desk.requirements()) for each in [facilitator, other] * 5)
        )
    assert all(answer == answers[0] and answer.success for answer in answers)
    assert len(desk.chain.sent) == 1
    assert desk.earned() == AMOUNT


async def test_the_bare_sdk_calls_a_settled_payment_failed_after_a_restart(desk: Desk) -> None:
    payment, requirements = await desk.sign(), desk.requirements()
    answers = [
        await asyncio.to_thread(
            ExactSvmScheme(FacilitatorKeypairSigner(desk.operator, desk.chain.url)).settle,
            payment,
            requirements,
        )
        for _ in range(2)
    ]
    assert [answer.success for answer in answers] == [True, False]
    assert desk.earned() == AMOUNT


async def test_after_a_restart_a_settled_payment_has_the_same_answer(desk: Desk) -> None:
    payment = await desk.sign()
    answers = []
    for _ in range(2):
        async with desk.open() as facilitator:
            answers.append(await facilitator.settle(payment, desk.requirements()))
        desk.chain.advance(EXPIRY_BLOCKS)  # it would not even simulate any more
    assert answers[0] == answers[1]
    assert answers[0].success
    assert len(desk.chain.sent) == 1


async def test_a_caller_who_goes_away_does_not_cut_a_settlement_in_two(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.held = True
    caller = asyncio.create_task(facilitator.settle(payment, desk.requirements()))
    while not desk.chain.sent:  # noqa: ASYNC110 - the chain has no event to wait for
        await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    desk.chain.confirm()
    assert (await facilitator.settle(payment, desk.requirements())).success
    assert desk.rows()[0][0] == "settled"


@pytest.mark.parametrize("method", ["sendTransaction", "getSignatureStatuses", "getTransaction"])
async def test_a_lost_answer_is_unknown_and_found_later(
    desk: Desk, facilitator: SolanaFacilitator, method: str
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers = {method, "getTransaction"}
    with pytest.raises(SettlementUnknown) as caught:
        await facilitator.settle(payment, desk.requirements())
    assert caught.value.error_reason == ERR_SETTLEMENT_PENDING
    assert caught.value.transaction == desk.chain.sent[0]
    assert desk.earned() == AMOUNT
    desk.chain.behaviour.lost_answers.clear()
    answer = await facilitator.settle(payment, desk.requirements())
    assert answer.success
    assert set(desk.chain.sent) == {answer.transaction, caught.value.transaction}
    assert desk.earned() == AMOUNT


async def test_a_node_that_shows_another_transaction_instead_is_not_believed(
    desk: Desk, facilitator: SolanaFacilitator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cache between us and the node may, that took one question for another."""
    first = await facilitator.settle(await desk.sign(), desk.requirements())
    payment, answer = await desk.sign(), desk.chain.answer

    def confuse(method: str, params: list[Any]) -> Any:
        asked = [first.transaction, *params[1:]] if method == "getTransaction" else params
        return answer(method, asked)

    with monkeypatch.context() as confused:
        confused.setattr(desk.chain, "answer", confuse)
        with pytest.raises(SettlementUnknown):
            await facilitator.settle(payment, desk.requirements())
    assert (await facilitator.settle(payment, desk.requirements())).success


@pytest.mark.parametrize("method", ["simulateTransaction", "getLatestBlockhash"])
async def test_a_node_that_fails_before_the_broadcast_moved_nothing(
    desk: Desk, facilitator: SolanaFacilitator, method: str
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers.add(method)
    with pytest.raises(FacilitatorUnreachable, match="Nothing was sent"):
        await facilitator.settle(payment, desk.requirements())
    assert desk.chain.sent == []
    assert desk.rows() == []
    desk.chain.behaviour.lost_answers.clear()
    assert (await facilitator.settle(payment, desk.requirements())).success


async def test_a_lost_answer_to_the_broadcast_alone_harms_nothing(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers.add("sendTransaction")
    assert (await facilitator.settle(payment, desk.requirements())).success
    assert len(desk.chain.sent) == 1


async def test_a_broadcast_that_the_node_drops_or_refuses_is_sent_again(desk: Desk) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.refusals["sendTransaction"] = ["Node is behind by 200 slots"]
    async with desk.open(seconds=20) as facilitator:
        assert (await facilitator.settle(payment, desk.requirements())).success
    assert desk.rows()[0][2] == 2  # sends
    assert desk.earned() == AMOUNT


async def test_a_delayed_confirmation_is_waited_for_and_processed_is_not_enough(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.held = True
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(payment, desk.requirements())
    assert desk.earned() == AMOUNT  # as the newest block has it; a fork may take it back
    desk.chain.confirm()
    assert (await facilitator.settle(payment, desk.requirements())).success


async def test_a_finalized_facilitator_waits_for_the_last_vote(desk: Desk) -> None:
    payment = await desk.sign()
    async with desk.open(commitment="finalized") as facilitator:
        with pytest.raises(SettlementUnknown):
            await facilitator.settle(payment, desk.requirements())
        desk.chain.advance(33)
        assert (await facilitator.settle(payment, desk.requirements())).success


async def test_a_slot_that_was_forked_away_settled_nothing(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.held = True
    with pytest.raises(SettlementUnknown) as caught:
        await facilitator.settle(payment, desk.requirements())
    desk.chain.fork(caught.value.transaction)
    assert desk.earned() == 0
    desk.chain.behaviour.held = False
    desk.chain.advance(EXPIRY_BLOCKS)
    answer = await facilitator.settle(payment, desk.requirements())
    assert not answer.success
    assert ERR_EXPIRED in str(answer.error_message)
    assert desk.earned() == 0


async def test_an_unconfirmed_payment_fails_only_when_it_can_land_no_more(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.dropped = True
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(payment, desk.requirements())
    desk.chain.advance(EXPIRY_BLOCKS - 33)  # its time is over, but that block is not final
    assert await facilitator.resolve() == []
    desk.chain.advance(33)
    ended = await facilitator.resolve()
    assert [(row.status, row.reason) for row in ended] == [("failed", ERR_EXPIRED)]
    assert await facilitator.resolve() == []


async def test_a_node_that_has_forgotten_cannot_say_that_a_payment_never_landed(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    desk.chain.behaviour.lost_answers.add("getTransaction")
    with pytest.raises(SettlementUnknown):
        await facilitator.settle(payment, desk.requirements())
    desk.chain.behaviour.lost_answers.clear()
    desk.chain.advance(EXPIRY_BLOCKS)
    desk.chain.behaviour.purged_before = 10**9
    assert await facilitator.resolve() == []
    desk.chain.behaviour.purged_before = 0
    assert [row.status for row in await facilitator.resolve()] == ["settled"]


async def test_a_message_is_found_by_its_hash(desk: Desk, facilitator: SolanaFacilitator) -> None:
    payment = await desk.sign()
    message_hash = solana_payment.read_payment(payment).message_hash
    assert await facilitator.find(NETWORK, message_hash) is None
    desk.chain.behaviour.held = True
    with pytest.raises(SettlementUnknown) as caught:
        await facilitator.settle(payment, desk.requirements())
    desk.chain.confirm()
    found = await facilitator.find(NETWORK, message_hash)
    assert found is not None
    assert (found.status, found.signature) == ("settled", caught.value.transaction)


async def test_a_lost_database_does_not_make_a_settled_payment_a_failure(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    first = await facilitator.settle(payment, desk.requirements())
    with psycopg.connect(desk.database_url) as connection:
        connection.execute("TRUNCATE payments.x402_solana_settlements")
    again = await facilitator.settle(payment, desk.requirements())
    with psycopg.connect(desk.database_url) as connection:
        connection.execute("TRUNCATE payments.x402_solana_settlements")
    desk.chain.advance(EXPIRY_BLOCKS)
    much_later = await facilitator.settle(payment, desk.requirements())
    assert first == again == much_later
    assert desk.earned() == AMOUNT


async def test_without_a_database_nothing_is_sent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollbook.core.database.POOL_WAIT_SECONDS_MAX", 0.1)
    payment = await desk.sign()
    async with SolanaFacilitator(
        {NETWORK: desk.chain.url}, str(desk.operator), "postgresql://nobody@127.0.0.1:9/none"
    ) as facilitator:
        with pytest.raises(FacilitatorUnreachable, match="Nothing was sent"):
            await facilitator.settle(payment, desk.requirements())
    assert desk.chain.sent == []


def _settle_and_die(url: str, key: str, database_url: str, payment: str, terms: str, when: str) -> None:
    """In a process of its own: settle, and be killed before the broadcast or before the record."""

    def die(*_: object, **__: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    async def run() -> None:
        async with SolanaFacilitator({NETWORK: url}, key, database_url) as facilitator:
            node = facilitator._nodes[NETWORK]  # pyright: ignore[reportPrivateUsage]
            if when == "before the broadcast":
                node.send = die  # pyright: ignore[reportAttributeAccessIssue]
            else:
                node.find_landing = die  # pyright: ignore[reportAttributeAccessIssue]
            await facilitator.settle(
                PaymentPayload.model_validate_json(payment), PaymentRequirements.model_validate_json(terms)
            )

    asyncio.run(run())


@pytest.mark.parametrize(
    ("when", "earned"), [("before the broadcast", 0), ("between broadcast and record", AMOUNT)]
)
async def test_a_killed_process_leaves_an_intent_from_which_the_next_one_goes_on(
    desk: Desk, facilitator: SolanaFacilitator, when: str, earned: int
) -> None:
    payment = await desk.sign()
    process = multiprocessing.get_context("spawn").Process(
        target=_settle_and_die,
        args=(
            desk.chain.url,
            str(desk.operator),
            desk.database_url,
            payment.model_dump_json(by_alias=True),
            desk.requirements().model_dump_json(by_alias=True),
            when,
        ),
    )
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    assert desk.earned() == earned
    assert [row[0] for row in desk.rows()] == ["signed"]
    async with desk.open(seconds=20) as facilitator:
        answer = await facilitator.settle(payment, desk.requirements())
    assert answer.success
    assert desk.earned() == AMOUNT
    assert desk.rows() == [("settled", answer.transaction, 1 + (earned == 0), AMOUNT, None)]


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_goes_wrong_the_last_answer_is_the_chains_and_no_sure_one_was_another(
    desk: Desk, seed: int
) -> None:
    """A random walk over faults: lost and refused answers, dropped and held transactions, forks, restarts."""
    chance = random.Random(seed)
    behaviour = desk.chain.behaviour
    payment = await desk.sign()
    if chance.random() < 0.3:
        behaviour.before_landing.append(desk.drain)
    sure: list[bool] = []
    for _ in range(4):
        behaviour.lost_answers = set(chance.sample(METHODS, chance.randint(0, 2)))
        behaviour.refusals = {chance.choice(METHODS): ["Node is unhealthy"]}
        behaviour.dropped, behaviour.held = chance.random() < 0.4, chance.random() < 0.5
        async with desk.open(seconds=0.05) as facilitator:
            with suppress(FacilitatorUnreachable, SettlementUnknown):
                sure.append((await facilitator.settle(payment, desk.requirements())).success)
        if desk.chain.sent and desk.chain.may_fork(desk.chain.sent[0]) and chance.random() < 0.5:
            desk.chain.fork(desk.chain.sent[0])
        desk.chain.advance(chance.choice((1, 40, 160)))
        if chance.random() < 0.5:
            desk.chain.confirm()
    desk.chain.behave()
    desk.chain.confirm()
    desk.chain.advance(EXPIRY_BLOCKS)
    async with desk.open() as facilitator:
        last = await facilitator.settle(payment, desk.requirements())
    assert last.success == (desk.earned() == AMOUNT)
    assert last.success or desk.earned() == 0
    assert all(answer == last.success for answer in sure)


async def test_what_lies_in_the_database_sends_no_transaction(
    desk: Desk, facilitator: SolanaFacilitator
) -> None:
    payment = await desk.sign()
    await facilitator.settle(payment, desk.requirements())
    signed = VersionedTransaction.from_bytes(base64.b64decode(payment.payload["transaction"]))
    with psycopg.connect(desk.database_url) as connection:
        kept = connection.execute("SELECT t::text FROM payments.x402_solana_settlements AS t").fetchall()
    assert kept
    for secret in (str(signed.signatures[1]), bytes(signed.signatures[1]).hex(), str(desk.operator)):
        assert secret not in str(kept)
