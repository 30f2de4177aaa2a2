"""The facilitator's server: what it makes of any body, and the operator's key."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.schemas import PaymentPayload, PaymentRequirements

from fixtures.facilitator import DEAD, KEY
from tollbook.books.payments.facilitator import server as facilitator_server
from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
from tollbook.books.payments.facilitator.remote import _make_body
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.core.local_chain import NETWORK
from tollbook.core.operator_keys import (
    KEY_VARIABLE,
    OperatorKeyUnusable,
    read_operator_key,
)
from tollbook.embedded import Server

NOWHERE = "postgresql://127.0.0.1:9/none"


@pytest.mark.parametrize("path", ["/verify", "/settle"])
@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 400, "malformed-body"),
        (b"[]", 400, "malformed-body"),
        (b"{", 400, "malformed-body"),
        (b"\xff", 400, "malformed-body"),
        (b"[" * 60_000, 400, "malformed-body"),
        (b"{}", 400, "invalid_x402_version"),
        (b'{"x402Version": 3}', 400, "invalid_x402_version"),
        (b'{"x402Version": 2}', 400, "malformed-body"),
        (b'{"x402Version": 2, "paymentPayload": {}, "paymentRequirements": {}}', 400, "malformed-body"),
        (b" " * (facilitator_server.BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ],
)
async def test_a_malformed_body_is_a_problem(
    in_process: InProcessFacilitator, path: str, content: bytes, status: int, reason: str
) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        answer = await client.post(path, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == reason


async def test_a_version_1_request_is_refused_in_its_own_terms(in_process: InProcessFacilitator) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        body = {"x402Version": 1, "paymentPayload": {}, "paymentRequirements": {}}
        verified = await client.post("/verify", json=body)
        settled = await client.post("/settle", json=body)
    assert verified.json() == {"isValid": False, "invalidReason": "invalid_x402_version"}
    assert settled.json()["success"] is False
    assert settled.json()["errorReason"] == "invalid_x402_version"


async def test_other_paths_and_methods_are_problems(in_process: InProcessFacilitator) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        missing, wrong = await client.get("/nothing"), await client.get("/verify")
    assert (missing.status_code, missing.json()["reason"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["reason"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_it_is_ready_when_node_and_database_answer(
    in_process: InProcessFacilitator, postgres: Server, database_url: str
) -> None:
    transport = httpx.ASGITransport(facilitator_app(in_process))
    nowhere = InProcessFacilitator({NETWORK: DEAD}, KEY, database_url)
    bookless = InProcessFacilitator({NETWORK: DEAD}, KEY, postgres.url("none"))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
    for unready in (nowhere, bookless):
        transport = httpx.ASGITransport(facilitator_app(unready))
        async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "facilitator-unreachable")
        assert answer.headers["retry-after"]
        await unready.aclose()


@pytest.mark.parametrize("signs_refunds", [False, True])
async def test_a_payer_cannot_have_a_channel_emptied_by_asking_for_its_refund(
    in_process: InProcessFacilitator, requirements: PaymentRequirements, *, signs_refunds: bool
) -> None:
    wanted = requirements.model_copy(update={"scheme": "batch-settlement"})
    channel = dict.fromkeys(
        ("payer", "payerAuthorizer", "receiver", "receiverAuthorizer", "token", "salt"), "0x" + "11" * 20
    )
    refund = {
        "type": "refund", "refundNonce": "0", "amount": "5", "claims": [],
        "channelConfig": channel | {"withdrawDelay": 900},
        "voucher": {"channelId": "0x" + "22" * 32, "maxClaimableAmount": "0", "signature": "0x"},
    }  # fmt: skip
    payload = PaymentPayload(x402_version=2, payload=refund, accepted=wanted)
    transport = httpx.ASGITransport(facilitator_app(in_process, signs_refunds=signs_refunds))
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
        answer = await client.post("/settle", json=_make_body(payload, wanted))
    refused = "authorizer_not_configured" in answer.text
    assert refused is not signs_refunds


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([NETWORK, "exact", "0x", "10"])
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)
REQUIREMENT_FIELDS = ("scheme", "network", "asset", "amount", "payTo", "maxTimeoutSeconds", "extra")


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "x402Version": st.just(2),
            "paymentPayload": st.fixed_dictionaries(
                {
                    "x402Version": st.just(2) | scalars,
                    "payload": st.dictionaries(
                        st.sampled_from(["authorization", "signature", "permit2Authorization"]), documents
                    ),
                    "accepted": st.dictionaries(st.sampled_from(REQUIREMENT_FIELDS), documents),
                }
            ),
            "paymentRequirements": st.fixed_dictionaries(
                {
                    "scheme": st.just("exact") | st.text(),
                    "network": st.just(NETWORK) | st.text(),
                    "asset": st.text(),
                    "amount": st.just("1") | st.text(),
                    "payTo": st.text(),
                    "maxTimeoutSeconds": st.integers(),
                    "extra": st.dictionaries(st.text(), documents),
                }
            ),
        }
    )
)
def test_no_body_makes_the_server_stumble(body: dict[str, Any]) -> None:
    async def post() -> list[int]:
        facilitator = InProcessFacilitator({NETWORK: DEAD}, KEY, NOWHERE)
        transport = httpx.ASGITransport(facilitator_app(facilitator))
        async with httpx.AsyncClient(transport=transport, base_url="http://facilitator") as client:
            return [(await client.post(path, json=body)).status_code for path in ("/verify", "/settle")]

    assert set(asyncio.run(post())) <= {200, 400}


# The operator's key


def test_a_key_comes_from_its_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text(KEY[2:].upper() + "\n")
    assert read_operator_key(file, {KEY_VARIABLE: "nonsense"}) == KEY
    assert read_operator_key(None, {KEY_VARIABLE: KEY}) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(mode)
    with pytest.raises(OperatorKeyUnusable, match="chmod 600") as refusal:
        read_operator_key(file, {})
    assert KEY[2:] not in str(refusal.value)


@pytest.mark.parametrize(
    "key", ["", "0x", KEY[:-1], KEY + "0", "0x" + "0" * 64, "0x" + "f" * 64, "s3cret" * 3]
)
def test_a_text_that_is_no_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(OperatorKeyUnusable) as refusal:
        read_operator_key(None, {KEY_VARIABLE: key})
    assert len(key) < 4 or key[2:] not in f"{refusal.value} {refusal.value.__cause__}"
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_an_absent_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorKeyUnusable, match="No such file"):
        read_operator_key(tmp_path / "none", dict(os.environ))
