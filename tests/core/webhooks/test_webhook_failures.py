"""Endpoints that fail, hang, redirect, flood or lie: what is told to them waits, and nobody else does."""

import asyncio
import itertools
import ssl
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixtures.webhooks import LOCAL, OK, Endpoint, Told, Tollkeeper, answer, fact, make_facts
from tollbook.core.webhooks import deliveries, desk, rules, subscriptions
from tollbook.core.webhooks.sending import ANSWER_BYTES_MAX, Post

HOUR = 3600.0


async def read_attempts(keeper: Tollkeeper) -> list[tuple[int, int | None, str | None, str | None]]:
    return await keeper.query(
        "SELECT attempt, status_code, error, answer FROM settlement.webhook_attempts ORDER BY at, attempt"
    )


async def test_an_endpoint_that_fails_for_an_hour_is_told_of_everything_in_order_afterwards(
    keeper: Tollkeeper,
) -> None:
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = answer(500, b"out of order")
    for minute in range(60):
        await keeper.happen(fact("a", minute), fact("b", minute))
        await keeper.tell()
        keeper.wait(60)
    tried = len(keeper.endpoint.told)
    assert 8 <= tried <= 24, "it was let alone for longer and longer"
    assert set(keeper.endpoint.subjects()) == {"a", "b"}
    keeper.endpoint.answers.clear()
    keeper.wait(3 * HOUR)
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": list(range(60)), "b": list(range(60))}
    assert (await read_attempts(keeper))[0][1:] == (500, "status 500", "out of order")
    [grant_row] = await keeper.query("SELECT failing_since FROM settlement.webhook_subscriptions")
    assert grant_row == (None,)


async def test_the_schedule_grows_to_half_a_day_and_ends_after_three_days_with_a_last_try(
    keeper: Tollkeeper,
) -> None:
    other = await keeper.subscribe("webhooks.*", path="/owner")
    grant = await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = answer(400)
    await keeper.happen(fact("a", 1))
    began, times = keeper.now, list[float]()
    for _ in range(40):
        await keeper.tell()
        if len(keeper.endpoint.subjects("/hooks")) > len(times):
            times.append((keeper.now - began).total_seconds())
        due = await keeper.query(
            "SELECT next_attempt_at FROM settlement.webhook_deliveries WHERE status = 'pending'"
        )
        if not due:
            break
        keeper.now = max(keeper.now + timedelta(seconds=30), due[0][0])
    gaps = [then - before for before, then in itertools.pairwise(times)]
    assert times[-1] == rules.RETRY_MAX.total_seconds()
    assert all(gap <= 12 * HOUR for gap in gaps)
    assert len(times) in range(12, 20)
    assert await keeper.statuses() == ["delivered", "failed"]
    found = await keeper.get(grant)
    assert not found.enabled
    assert found.disabled_reason == "it failed for 3 days, last: status 400"
    await keeper.tell()
    [*_, told] = [told for told in keeper.endpoint.told if told.path == "/owner"]
    assert told.event["type"] == "webhooks.disabled"
    assert told.subject == grant.subscription.subscription_id
    assert (await keeper.get(other)).enabled


async def test_who_took_one_event_is_not_disabled_for_the_next_one_that_fails(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("payments.*")
    taken = asyncio.Event()

    async def take_the_first(told: Told, _: asyncio.StreamWriter) -> bytes:
        if told.subject == "good":
            taken.set()
            return answer(200)
        await taken.wait()
        await asyncio.sleep(0.05)
        return answer(500)

    keeper.endpoint.answers["/hooks"] = take_the_first
    await keeper.query(
        "UPDATE settlement.webhook_subscriptions SET failing_since = %(then)s RETURNING 1",
        then=keeper.now - timedelta(days=4),
    )
    await keeper.happen(fact("good"), fact("bad"))
    await keeper.dispatch()
    await keeper.sender.send_due()  # both are written down at once
    found = await keeper.get(grant)
    assert (found.enabled, found.failing_since) == (True, keeper.now)


async def test_a_disabled_endpoint_is_told_nothing_and_goes_on_with_what_waits_when_enabled(
    keeper: Tollkeeper,
) -> None:
    grant = await keeper.subscribe("payments.*")
    name = grant.subscription.subscription_id
    keeper.endpoint.answers["/hooks"] = answer(410)
    await keeper.happen(*make_facts(["a", "b"], 2))
    await keeper.tell()
    found = await keeper.get(grant)
    assert (found.enabled, found.disabled_reason) == (False, "the endpoint answered 410 Gone")
    tried = len(keeper.endpoint.told)
    assert tried <= 2
    keeper.endpoint.answers.clear()
    await keeper.happen(fact("a", 2))  # while it is disabled
    keeper.wait(30 * HOUR)
    await keeper.tell()
    assert len(keeper.endpoint.told) == tried
    async with keeper.database.write() as tx:
        await subscriptions.enable(tx, name, now=keeper.now)
    await keeper.happen(fact("a", 3))
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [0, 1, 3], "b": [0, 1]}
    await desk.replay_range(keeper.database, name, since=found.created_at - timedelta(minutes=1))
    await keeper.tell()
    assert keeper.endpoint.by_subject()["a"] == [0, 1, 3, 2]
    kinds = await keeper.query("SELECT kind FROM core.journal WHERE book = 'webhooks' ORDER BY entry_id")
    assert [kind for (kind,) in kinds] == ["created", "disabled", "enabled"]


async def test_enabling_writes_no_more_queues_than_wait_for_a_retry(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("payments.*")
    name, queues = (
        grant.subscription.subscription_id,
        ("SELECT subject, xmin::text, next_attempt_at FROM settlement.webhook_queues ORDER BY subject"),
    )
    keeper.endpoint.answers["/hooks"] = answer(500)
    await keeper.happen(fact("failed"))
    await keeper.tell()
    await keeper.happen(fact("never tried"))
    await keeper.dispatch()
    await desk.change(keeper.database, name, enabled=False)
    before = await keeper.query(queues)
    async with keeper.database.write() as tx:
        await subscriptions.enable(tx, name, now=keeper.now)
    after = await keeper.query(queues)
    assert before[0][2] > after[0][2] == keeper.now
    assert before[1] == after[1]


async def test_enabling_can_bring_what_was_missed(keeper: Tollkeeper) -> None:
    grant = await keeper.subscribe("payments.*")
    name = grant.subscription.subscription_id
    await keeper.happen(fact("a", 1))  # while no worker runs
    await desk.change(keeper.database, name, enabled=False)
    await keeper.happen(fact("a", 2))
    await keeper.tell()
    await desk.change(keeper.database, name, enabled=True)
    keeper.wait(1)
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [1]}
    await desk.change(keeper.database, name, enabled=False)
    await keeper.happen(fact("a", 3))
    await desk.change(keeper.database, name, enabled=True, replay_missed=True)
    keeper.wait(1)
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [1, 2, 3]}


@pytest.mark.parametrize(
    ("said", "seconds"), [("120", 120), ("999999999", 3600), ("soon", 5.5), ("0", 5.5), ("-5", 5.5)]
)
async def test_who_asks_us_to_wait_is_waited_for_within_bounds(
    keeper: Tollkeeper, said: str, seconds: float
) -> None:
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = answer(429, retry_after=said)
    await keeper.happen(fact("a"))
    await keeper.tell()
    keeper.endpoint.answers.clear()
    await keeper.happen(fact("b"))
    keeper.wait(seconds - 1)
    await keeper.tell()
    waited = len(keeper.endpoint.subjects())
    keeper.wait(2)
    await keeper.tell()
    assert sorted(keeper.endpoint.subjects()) == ["a", "a", "b"]
    assert waited == (1 if seconds > 100 else 2)


async def hang(_: Told, __: object) -> None:
    await asyncio.Event().wait()


async def close(_: Told, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def drip(_: Told, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while True:
        writer.write(b"z")
        await asyncio.sleep(0.05)


flooded: list[int] = []


async def flood(_: Told, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
    piece = b"x" * 65536
    for _nth in range(1_000_000_000 // len(piece)):
        flooded.append(len(piece))
        writer.write(piece)
        await writer.drain()


async def flood_headers(_: Told, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-" + b"y" * 4000 + b": z\r\n")
        await writer.drain()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (hang, "no answer within"),
        (drip, "no answer within"),
        (close, "the connection broke off"),
        (flood_headers, "the answer is not HTTP"),
        (answer(302, location="http://127.0.0.1:1/"), "status 302: redirects are not followed"),
        (answer(307, location="/elsewhere"), "status 307: redirects are not followed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the answer is not HTTP"),
    ],
    ids=["hangs", "drips", "closes", "endless headers", "302", "307", "no HTTP"],
)
async def test_what_is_no_answer_is_a_failure_and_is_tried_again(
    keeper: Tollkeeper, bad: bytes | Callable[..., object], error: str
) -> None:
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = bad  # pyright: ignore[reportArgumentType]
    await keeper.happen(fact("a"))
    async with Post(LOCAL, seconds_max=0.3 if error == "no answer within" else 60) as post:
        keeper.post = post
        await keeper.tell(keeper.make_sender())
    [(_, _, said, _)] = await read_attempts(keeper)
    assert said is not None
    assert said.startswith(error)
    assert "/elsewhere" not in {told.path for told in keeper.endpoint.told}
    keeper.endpoint.answers.clear()
    keeper.wait(10)
    async with Post(LOCAL) as post:
        keeper.post = post
        await keeper.tell(keeper.make_sender())
    assert await keeper.statuses() == ["delivered"]


async def test_an_answer_of_a_gigabyte_is_cut_off_and_counts_by_its_status(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = flood
    await keeper.happen(fact("a"))
    await keeper.tell()
    assert sum(flooded) < 10**9
    [(_, status, error, said)] = await read_attempts(keeper)
    assert (status, error, said) == (200, None, "x" * 1024)
    assert ANSWER_BYTES_MAX < 10**6


async def test_an_answer_that_no_text_can_hold_is_kept_as_well_as_can_be(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = answer(200, b"a\0b\xff", content_encoding="gzip")
    await keeper.happen(fact("a"))
    await keeper.tell()
    assert (await read_attempts(keeper))[0][3] == "a�b�"


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_events(
    keeper: Tollkeeper, at_once: bool
) -> None:
    await keeper.subscribe("payments.*")

    async def answer_too_much(told: Told, writer: asyncio.StreamWriter) -> bytes | None:
        if told.subject == "first" and at_once:
            return OK * 2
        if told.subject == "first":
            asyncio.get_running_loop().call_later(0.05, writer.write, OK)
            return OK
        writer.close()
        return None

    keeper.endpoint.answers["/hooks"] = answer_too_much
    await keeper.happen(fact("first"))
    await keeper.tell()
    await asyncio.sleep(0.1)
    await keeper.happen(fact("second"))
    await keeper.tell()
    assert await keeper.statuses() == ["delivered", "pending"]


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a socket's other end has no event to wait for
        await asyncio.sleep(0.01)


async def test_who_is_slow_or_dead_delays_nobody_else(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollbook.core.webhooks.sender.STOP_SECONDS_MAX", 0.1)
    for nth in range(8):
        await keeper.subscribe("payments.*", path=f"/dead{nth}")
        keeper.endpoint.answers[f"/dead{nth}"] = hang
    await keeper.subscribe("payments.*", path="/alive")
    await keeper.happen(*make_facts([f"s{n}" for n in range(100)], 1))
    while await keeper.dispatch():
        pass
    stop = asyncio.Event()
    async with Post(LOCAL, seconds_max=600) as keeper.post, asyncio.timeout(300):
        running = asyncio.create_task(keeper.make_sender().run(stop, poll_seconds=0.01))
        await until(lambda: len(keeper.endpoint.subjects("/alive")) == 100)
        await until(lambda: len({told.path for told in keeper.endpoint.told}) == 9)
        stop.set()
        await running
    dead = [told for told in keeper.endpoint.told if told.path != "/alive"]
    assert 8 <= len(dead) <= 8 * 4


async def test_a_stopped_sender_gives_back_what_it_had_not_begun(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollbook.core.webhooks.sender.STOP_SECONDS_MAX", 0.1)
    await keeper.subscribe("payments.*")
    keeper.endpoint.answers["/hooks"] = hang
    await keeper.happen(*make_facts([f"s{n}" for n in range(8)], 1))
    await keeper.dispatch()
    stop = asyncio.Event()
    running = asyncio.create_task(keeper.sender.run(stop, poll_seconds=0.01))
    await until(lambda: len(keeper.endpoint.told) == 4)
    stop.set()
    await running
    keeper.endpoint.answers.clear()
    await keeper.tell(keeper.make_sender())
    assert await keeper.statuses() == ["delivered"] * 8


async def test_one_event_in_three_that_an_endpoint_cannot_bear_does_not_slow_down_the_others(
    keeper: Tollkeeper,
) -> None:
    await keeper.subscribe("payments.*")

    async def picky(told: Told, _: asyncio.StreamWriter) -> bytes:
        return answer(400 if told.event["data"]["details"]["n"] % 3 == 0 else 200)

    keeper.endpoint.answers["/hooks"] = picky
    await keeper.happen(*(fact(f"s{n}", n) for n in range(90)))
    for _ in range(8):  # it may have three of them in a row by chance, and a rest then
        await keeper.tell()
        keeper.wait(0.6)
    statuses = await keeper.statuses()
    assert (statuses.count("delivered"), statuses.count("pending")) == (60, 30)
    assert len(keeper.endpoint.told) == 90


async def test_an_event_that_cannot_be_written_waits_and_lets_the_others_go_on(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("bad"), fact("good"))
    real = rules.write_body

    def write(event_type: str, at: datetime, data: dict[str, object]) -> str:
        if data["subject"] == "bad":
            raise RuntimeError("a defect")
        return real(event_type, at, data)

    monkeypatch.setattr(rules, "write_body", write)
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["good"]
    monkeypatch.setattr(rules, "write_body", real)
    keeper.wait(10)
    await keeper.tell()
    assert keeper.endpoint.subjects() == ["good", "bad"]


async def test_a_sender_that_died_is_taken_over_from_when_its_lease_ends(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.happen(fact("a", 1), fact("a", 2))
    await keeper.dispatch()
    claims = await deliveries.claim(keeper.database, 1, {}, room=9, now=keeper.now)
    assert len(claims) == 1
    await keeper.tell()
    assert keeper.endpoint.told == []
    keeper.wait(deliveries.LEASE.total_seconds())
    await keeper.tell()
    assert keeper.endpoint.by_subject() == {"a": [1, 2]}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody vouches for, with its key."""
    file = tmp_path_factory.mktemp("tls") / "self.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(file), "-out", str(file.with_suffix(".crt"))],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


async def test_an_endpoint_whose_certificate_nobody_vouches_for_is_told_nothing(
    keeper: Tollkeeper, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_suffix(".crt"), certificate)
    wrong = Endpoint()
    await wrong.start(ssl=context)
    await keeper.subscribe("payments.*", url=f"https://127.0.0.1:{wrong.port}/hooks")
    await keeper.happen(fact("a"))
    await keeper.tell()
    await wrong.stop()
    assert wrong.told == []
    assert [row[2] for row in await read_attempts(keeper)] == ["certificate refused: self-signed certificate"]
