"""Webhooks over HTTP and on the command line: the reference's JSON, secrets shown once, replays, tests."""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from standardwebhooks import Webhook, WebhookVerificationError

from fixtures.webhooks import KEY, Endpoint, Tollkeeper, answer, fact, verify
from tollbook.core import clock, keys
from tollbook.core.commands import to_plain
from tollbook.core.database import Database
from tollbook.core.settings import Settings
from tollbook.core.webhooks import desk
from tollbook.core.webhooks.subscriptions import SECRETS_MAX, Grant, make_id
from tollbook.entrypoints import doctor
from tollbook.entrypoints.api import create_api
from tollbook.entrypoints.cli import tollbook

SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]{44}")


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints on this machine are allowed, as in a development's settings."""
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW_HTTP", "1")
    monkeypatch.setenv("TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("TOLLBOOK_SECRET_KEY", KEY.hex())


async def make_key(database: Database, *scopes: str) -> str:
    async with database.write() as tx:
        return (await keys.create(tx, name="test", scopes=scopes, now=clock.now())).secret


@pytest.fixture
async def api(keeper: Tollkeeper) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with every right."""
    app = create_api(keeper.database.url)
    bearer = {"Authorization": f"Bearer {await make_key(keeper.database, '*')}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://tollbook", headers=bearer
        ) as client,
    ):
        yield client


async def add(api: httpx.AsyncClient, url: str, *event_types: str) -> dict[str, Any]:
    made = await api.post("/v1/webhooks", json={"url": url, "event_types": event_types or ["payments.*"]})
    assert made.status_code == 201, made.text
    return made.json()


async def test_a_webhook_is_made_by_the_references_json_shown_without_its_secret_changed_and_removed(
    api: httpx.AsyncClient, endpoint: Endpoint
) -> None:
    wanted = {"url": endpoint.url(), "event_types": ["settlement.confirmed"], "description": "books"}
    made = (await api.post("/webhooks", json=wanted)).json()  # as the reference does
    assert made | wanted == made
    assert made["enabled"] is True
    assert SECRET.fullmatch(made["secret"])
    at = f"/v1/webhooks/{made['subscription_id']}"
    for shown in ((await api.get(at)).json(), (await api.get("/v1/webhooks")).json()[0]):
        assert "secret" not in shown
        assert {name: shown[name] for name in wanted} == wanted
    changed = await api.patch(at, json={"event_types": ["*"], "description": "", "enabled": False})
    assert changed.json() | {"event_types": ["*"], "description": None, "enabled": False} == changed.json()
    assert changed.json()["disabled_reason"] == "disabled by hand"
    assert (await api.patch(at, json={"enabled": True})).json()["disabled_at"] is None
    assert (await api.delete(at)).status_code == 204
    assert (await api.delete(at)).status_code == (await api.get(at)).status_code == 404


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "http://10.0.0.1/"}, "webhook-url-refused"),
        ({"url": "https://user:hunter2@example.com/"}, "webhook-url-refused"),
        ({"event_types": ["payments.*.x"]}, "webhook-event-type-malformed"),
        ({"event_types": ["payment.settled"]}, "webhook-event-type-malformed"),
        ({"event_types": ["core.*"]}, "webhook-event-type-malformed"),
        ({"event_types": []}, "request-invalid"),
        ({"description": "x" * 513}, "request-invalid"),
        ({"secret": "whsec_mine"}, "request-invalid"),
        ({"enabled": True}, "request-invalid"),
    ],
)
async def test_what_cannot_stand_is_refused_and_not_repeated(
    api: httpx.AsyncClient, endpoint: Endpoint, change: dict[str, object], reason: str
) -> None:
    refused = await api.post("/v1/webhooks", json={"url": endpoint.url(), "event_types": ["*"]} | change)
    assert refused.status_code == 422
    assert refused.json()["type"] == f"urn:tollbook:problem:{reason}"
    assert "hunter2" not in refused.text
    if change == {"event_types": ["payment.settled"]}:
        assert "Here are payments, settlement, webhooks." in refused.json()["detail"]
    assert (await api.get("/v1/webhooks")).json() == []


async def test_a_key_reads_or_writes_webhooks_or_neither(keeper: Tollkeeper, api: httpx.AsyncClient) -> None:
    made = await add(api, keeper.endpoint.url())
    for scopes, reads, writes in (
        (["webhooks:read"], 200, 403),
        (["webhooks:write"], 403, 200),
        (["keys:read"], 403, 403),
    ):
        bearer = {"Authorization": f"Bearer {await make_key(keeper.database, *scopes)}"}
        at = f"/v1/webhooks/{made['subscription_id']}"
        assert (await api.get(at, headers=bearer)).status_code == reads
        assert (await api.get(f"{at}/deliveries", headers=bearer)).status_code == reads
        assert (await api.post(f"{at}/rotate", headers=bearer)).status_code == writes
    async with httpx.AsyncClient(transport=api._transport, base_url="http://tollbook") as nobody:  # pyright: ignore[reportPrivateUsage]
        assert (await nobody.get("/v1/webhooks")).status_code == 401


async def test_a_post_sent_again_by_its_key_makes_one_webhook_and_shows_the_same_secret(
    api: httpx.AsyncClient, endpoint: Endpoint
) -> None:
    once = {"Idempotency-Key": secrets.token_hex(16)}
    wanted = {"url": endpoint.url(), "event_types": ["*"]}
    first, second = [await api.post("/v1/webhooks", json=wanted, headers=once) for _ in range(2)]
    assert first.json() == second.json()
    assert len((await api.get("/v1/webhooks")).json()) == 1


async def test_two_secrets_are_valid_for_a_day_after_a_rotation(
    keeper: Tollkeeper, api: httpx.AsyncClient
) -> None:
    made = await add(api, keeper.endpoint.url())
    at = f"/v1/webhooks/{made['subscription_id']}"
    rotated = (await api.post(f"{at}/rotate")).json()
    assert rotated["secret"] != made["secret"]
    await keeper.happen(fact("a"))
    await keeper.tell()
    [told] = keeper.endpoint.told
    verify(told, made["secret"], rotated["secret"])
    keeper.wait(24 * 3600 + 5)
    await keeper.happen(fact("b"))
    await keeper.tell()
    told = keeper.endpoint.told[-1]
    late = told.headers | {"webhook-timestamp": str(int(clock.now().timestamp()))}
    assert len(told.headers["webhook-signature"].split()) == 1
    with pytest.raises(WebhookVerificationError):
        Webhook(made["secret"]).verify(told.body, late)


async def test_a_receiver_that_knows_any_secret_of_the_last_day_is_content_however_often_it_was_rotated(
    keeper: Tollkeeper, api: httpx.AsyncClient
) -> None:
    made = await add(api, keeper.endpoint.url())
    at = f"/v1/webhooks/{made['subscription_id']}"
    valid = [made["secret"]]
    for _ in range(SECRETS_MAX - 1):
        valid.append((await api.post(f"{at}/rotate")).json()["secret"])
    assert (await api.post(f"{at}/test")).json()["attempt"]["status_code"] == 200
    await keeper.happen(fact("a"))
    await keeper.tell()
    for told in keeper.endpoint.told:
        verify(told, *valid)
    refused = await api.post(f"{at}/rotate")
    assert (refused.status_code, refused.json()["title"]) == (409, "webhook rotated too often")
    assert "Wait until" in refused.json()["detail"]
    await keeper.query(  # a day later
        "UPDATE settlement.webhook_subscriptions SET previous_secret_expires_at = now(), "
        "older_secrets_expire_at = array_fill(now(), ARRAY[cardinality(older_secrets)]) RETURNING 1"
    )
    last = (await api.post(f"{at}/rotate")).json()["secret"]
    await keeper.happen(fact("b"))
    await keeper.tell()
    told = keeper.endpoint.told[-1]
    assert len(told.headers["webhook-signature"].split()) == 2
    verify(told, valid[-1], last)


async def test_a_new_secret_helps_where_the_one_before_cannot_be_read_any_more(
    keeper: Tollkeeper, api: httpx.AsyncClient
) -> None:
    """Restored without the installation's key."""
    made = await add(api, keeper.endpoint.url())
    await keeper.query("UPDATE settlement.webhook_subscriptions SET secret = 'of another key' RETURNING 1")
    rotated = (await api.post(f"/v1/webhooks/{made['subscription_id']}/rotate")).json()
    assert (await api.post(f"/v1/webhooks/{made['subscription_id']}/test")).status_code == 200
    await keeper.happen(fact("a"))
    await keeper.tell()
    for told in keeper.endpoint.told:
        verify(told, rotated["secret"])
    assert len(keeper.endpoint.told) == 2


async def test_a_test_is_sent_at_once_signed_and_its_outcome_is_the_answer(
    keeper: Tollkeeper, api: httpx.AsyncClient
) -> None:
    made = await add(api, keeper.endpoint.url(), "settlement.failed")
    at = f"/v1/webhooks/{made['subscription_id']}"
    good = (await api.post(f"{at}/test")).json()
    [told] = keeper.endpoint.told
    verify(told, made["secret"])
    assert told.event["type"] == "webhooks.test"
    assert (good["delivery"]["status"], good["attempt"]["status_code"]) == ("delivered", 200)
    assert good["attempt"]["answer"] == "ok"
    keeper.endpoint.answers["/hooks"] = answer(403, b"who are you")
    bad = (await api.post(f"{at}/test")).json()
    assert (bad["delivery"]["status"], bad["attempt"]["error"]) == ("failed", "status 403")
    await keeper.tell()
    assert len(keeper.endpoint.told) == 2, "a test is not tried again"
    listed = (await api.get(f"{at}/deliveries")).json()["items"]
    assert [one["status"] for one in listed] == ["failed", "delivered"]


async def test_one_delivery_and_a_range_are_replayed_by_the_same_webhook_ids(
    keeper: Tollkeeper, api: httpx.AsyncClient
) -> None:
    made = await add(api, keeper.endpoint.url())
    at, since = f"/v1/webhooks/{made['subscription_id']}", clock.now() - timedelta(minutes=1)
    await keeper.happen(fact("a", 1), fact("b", 1), fact("c", 1, book="settlement"))
    await keeper.tell()
    ids = [told.message_id for told in keeper.endpoint.told]
    page = (await api.get(f"{at}/deliveries", params={"limit": 1})).json()
    assert page["next_cursor"]
    delivery_id = page["items"][0]["delivery_id"]
    again = await api.post(f"{at}/deliveries/{delivery_id}/replay")
    assert again.status_code == 202
    assert (await api.post(f"{at}/deliveries/{again.json()['delivery_id']}/replay")).status_code == 409
    keeper.now = clock.now()
    await keeper.tell()
    assert keeper.endpoint.told[-1].message_id == page["items"][0]["message_id"]
    once = {"Idempotency-Key": secrets.token_hex(16)}
    for _ in range(2):
        replay = await api.post(f"{at}/replay", json={"since": since.isoformat()}, headers=once)
        assert (replay.status_code, replay.json()["events"]) == (202, 2)
    keeper.now = clock.now()
    await keeper.tell()
    assert sorted(told.message_id for told in keeper.endpoint.told[3:]) == sorted(ids)
    details = (await api.get(f"{at}/deliveries/{delivery_id}")).json()
    assert [attempt["status_code"] for attempt in details["attempts"]] == [200]
    assert (await api.get(f"{at}/deliveries/dlv_0000000000000")).status_code == 404
    assert (await api.get(f"{at}/deliveries/nonsense")).status_code == 404


async def test_a_replay_of_too_much_is_refused(
    keeper: Tollkeeper, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollbook.core.webhooks.replays.EVENTS_MAX", 2)
    made = await add(api, keeper.endpoint.url())
    await keeper.happen(*(fact(str(n)) for n in range(3)))
    since = (clock.now() - timedelta(minutes=1)).isoformat()
    refused = await api.post(f"/v1/webhooks/{made['subscription_id']}/replay", json={"since": since})
    assert (refused.status_code, refused.json()["events_max"]) == (422, 2)


async def test_a_secret_is_in_one_answer_and_nowhere_else(
    keeper: Tollkeeper, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = await add(api, keeper.endpoint.url())
    at = f"/v1/webhooks/{made['subscription_id']}"
    rotated = (await api.post(f"{at}/rotate")).json()
    keeper.endpoint.answers["/hooks"] = answer(500)
    await keeper.happen(fact("a"))
    await keeper.tell()
    said = [
        await api.post(f"{at}/test"),
        *[await api.get(path) for path in (at, "/v1/webhooks", f"{at}/deliveries")],
    ]
    rows = await keeper.query(
        """
        SELECT s::text FROM settlement.webhook_subscriptions s
        UNION ALL SELECT j::text FROM core.journal j UNION ALL SELECT k::text FROM core.idempotency_keys k
        UNION ALL SELECT a::text FROM settlement.webhook_attempts a
        UNION ALL SELECT d::text FROM settlement.webhook_deliveries d
        """
    )
    everything = "\n".join([caplog.text, *(one.text for one in said), *(row[0] for row in rows), str(api)])
    for one in (made, rotated):
        bare = one["secret"].removeprefix("whsec_")
        assert bare not in everything
    assert KEY.hex() not in everything
    grant = Grant(made["secret"], await keeper.get(await keeper.subscribe()))
    assert made["secret"] not in repr(grant)


async def test_a_secret_sealed_with_another_key_is_said_and_waits(keeper: Tollkeeper) -> None:
    await keeper.subscribe("payments.*")
    await keeper.query(
        "UPDATE settlement.webhook_subscriptions SET secret = 'plain-text-of-the-reference' RETURNING 1"
    )
    await keeper.happen(fact("a"))
    await keeper.tell()
    assert keeper.endpoint.told == []
    [(error,)] = await keeper.query("SELECT error FROM settlement.webhook_attempts")
    assert "tollbook webhooks rotate" in error
    assert "plain-text" not in error
    assert await keeper.statuses() == ["pending"]


async def test_every_command_line_verb_does_what_it_says(
    keeper: Tollkeeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*words: str, code: int = 0) -> Any:
        options = ["--json", "--database-url", keeper.database.url]
        done = CliRunner().invoke(tollbook, ["webhooks", *words, *options])
        assert done.exit_code == code, (done.output, done.exception)
        return json.loads(done.stdout) if code == 0 else None

    async def in_thread(*words: str, code: int = 0) -> Any:
        return await asyncio.to_thread(run, *words, code=code)

    made = await in_thread("add", keeper.endpoint.url(), "--event", "payments.*", "--description", "mine")
    name = made["subscription_id"]
    assert SECRET.fullmatch(made["secret"])
    assert [one["subscription_id"] for one in await in_thread("list")] == [name]
    assert "secret" not in await in_thread("show", name)
    tested = await in_thread("test", name)
    assert tested["attempt"]["status_code"] == 200
    await keeper.happen(fact("a"))
    await keeper.tell()
    [delivery, test] = await in_thread("deliveries", name)
    assert (delivery["event_type"], test["event_type"]) == ("payments.payment.settled", "webhooks.test")
    [cut] = await in_thread("deliveries", name, "--limit", "1")
    assert [test] == await in_thread("deliveries", name, "--after", cut["delivery_id"])
    [attempt] = await in_thread("deliveries", name, delivery["delivery_id"])
    assert attempt["answer"] == "ok"
    assert (await in_thread("replay", name, delivery["delivery_id"]))["status"] == "pending"
    assert (await in_thread("replay", name, "--since", "2026-01-01"))["events"] == 0, "it waits already"
    await in_thread("replay", name, code=2)
    assert (await in_thread("disable", name))["enabled"] is False
    assert (await in_thread("enable", name, "--replay-missed"))["enabled"] is True
    assert (await in_thread("rotate", name))["secret"] != made["secret"]
    keeper.endpoint.answers["/hooks"] = answer(500)
    await in_thread("test", name, code=1)
    assert (await in_thread("remove", name)) == {"removed": name}
    await in_thread("show", name, code=1)
    await in_thread("add", "https://127.0.0.1/", "--event", "a*", code=1)


async def test_the_doctor_tells_of_webhooks_that_fail_or_cannot_be_signed(
    keeper: Tollkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().model_copy(update={"database_url": keeper.database.url})

    def look() -> list[tuple[str, str]]:
        return [(found.state, found.says) for found in doctor.look_at_webhooks(settings, keeper.database.url)]

    assert look() == []
    grant = await keeper.subscribe("payments.*")
    name = grant.subscription.subscription_id
    assert look() == [("good", "1 of 1 enabled")]
    keeper.endpoint.answers["/hooks"] = answer(500)
    await keeper.happen(fact("a"))
    await keeper.tell()
    [(state, says), _] = look()
    assert (state, says.startswith(f"{name}: it fails since 20")) == ("note", True)
    await desk.change(keeper.database, name, enabled=False)
    assert look() == [("note", f"{name} is disabled: disabled by hand"), ("good", "0 of 1 enabled")]
    settings = settings.model_copy(update={"secret_key": None})
    assert look()[-1] == ("wrong", "no secret key: nothing is sent")


def test_an_id_is_like_the_references() -> None:
    assert make_id(5) == "wh_0000000000005"
    assert to_plain({"id": make_id(5)}) == {"id": "wh_0000000000005"}
    assert Settings().secret_key is not None
    assert KEY.hex() not in repr(Settings())
