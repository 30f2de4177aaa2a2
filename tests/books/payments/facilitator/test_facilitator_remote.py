"""Facilitators elsewhere: an answer is believed only where it is sure."""

import json
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from x402.schemas import PaymentRequirements, SettleResponse

from clients.pay import require, sign
from fixtures.facilitator import DEAD
from fixtures.serve import serve
from tollbook.books.payments.facilitator import remote as facilitator_remote
from tollbook.books.payments.facilitator.in_process import (
    FacilitatorUnreachable,
    SettlementUnknown,
)
from tollbook.books.payments.facilitator.remote import RemoteFacilitator
from tollbook.core.local_chain import NETWORK


async def answer_settle(status: int, body: object) -> Any:
    """What RemoteFacilitator.settle makes of a facilitator's answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        asked.append(scope["path"])
        headers = [(b"location", b"/elsewhere"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async with serve(app) as url:
        remote = RemoteFacilitator(url, headers={"Authorization": "Bearer s3cret"})
        payload = await sign(Account.create(), require("0x" + "42" * 20, "0x" + "43" * 20))
        try:
            return await remote.settle(payload, payload.accepted)
        except (SettlementUnknown, FacilitatorUnreachable) as error:
            return error
        finally:
            assert asked == ["/settle"]
            await remote.aclose()


def failed(reason: str | None, transaction: str = "") -> dict[str, Any]:
    return {"success": False, "errorReason": reason, "transaction": transaction, "network": NETWORK}


@pytest.mark.parametrize("name", ["extra", "extensions"])
async def test_what_no_header_has_room_for_goes_no_further(name: str) -> None:
    settled = {"success": True, "transaction": "0x" + "ab" * 32, "network": NETWORK}
    for letters, is_kept in ((100, True), (facilitator_remote.EXTRAS_BYTES_MAX, False)):
        answer = await answer_settle(200, settled | {name: {"said": "x" * letters}})
        assert isinstance(answer, SettleResponse)
        assert answer.success
        assert (getattr(answer, name) is not None) == is_kept


@pytest.mark.parametrize("name", ["transaction", "payer", "amount"])
async def test_an_answer_of_endless_words_is_none(name: str) -> None:
    settled = {"success": True, "transaction": "0x" + "ab" * 32, "network": NETWORK}
    answer = await answer_settle(200, settled | {name: "1" * 1_000})
    assert isinstance(answer, SettlementUnknown)


async def test_what_a_facilitator_says_of_its_node_is_not_for_buyers() -> None:
    said = "HTTPConnectionPool(host='node.example', port=443): Max retries exceeded with url: /v2/s3cretKey "
    said += "(https://me:s3cretKey@node.example) ?key=s3cretKey " + "x" * 10_000
    answer = await answer_settle(200, failed("invalid_scheme") | {"errorMessage": said})
    assert isinstance(answer, SettleResponse)
    assert answer.error_message is not None
    assert "s3cretKey" not in answer.error_message
    assert answer.error_message.startswith("HTTPConnectionPool")
    assert len(answer.error_message) == facilitator_remote.MESSAGE_LETTERS_MAX


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {"success": True, "transaction": "0x1", "network": NETWORK}, SettleResponse),
        (200, {"success": True, "transaction": "", "network": NETWORK}, SettlementUnknown),
        (200, {"success": True, "transaction": "0x1", "network": "eip155:1"}, SettlementUnknown),
        (200, {"success": "yes", "transaction": "0x1", "network": NETWORK}, SettlementUnknown),
        (200, failed("insufficient_funds"), SettleResponse),
        (400, failed("invalid_exact_evm_payload_signature"), SettleResponse),
        (200, failed("transaction_failed"), SettlementUnknown),
        (200, failed("transaction_failed", "0x1"), SettlementUnknown),
        (200, failed("invalid_exact_evm_insufficient_balance", "0x1"), SettlementUnknown),
        (200, failed("settlement_pending", "0x1"), SettlementUnknown),
        (200, failed("invalid_exact_evm_nonce_already_used"), SettlementUnknown),
        (200, failed(None), SettlementUnknown),
        (200, b"<html>", SettlementUnknown),
        (200, b"x" * (facilitator_remote.ANSWER_BYTES_MAX + 1), SettlementUnknown),
        (307, b"", SettlementUnknown),
        (500, {"error": "boom"}, SettlementUnknown),
        (503, {"error": "boom"}, SettlementUnknown),
        (503, {"success": True, "transaction": "0x1", "network": NETWORK}, SettlementUnknown),
        (503, {"reason": "facilitator-unreachable"}, FacilitatorUnreachable),
        (401, {"error": "who are you"}, FacilitatorUnreachable),
        (429, b"slow down", FacilitatorUnreachable),
        (413, b"", FacilitatorUnreachable),
    ],
)
async def test_an_answer_from_elsewhere_is_believed_only_where_it_is_sure(
    status: int, body: object, outcome: type[object]
) -> None:
    told = await answer_settle(status, body)
    assert isinstance(told, outcome)
    assert "s3cret" not in str(told)


async def test_a_facilitator_that_never_answers_leaves_the_payment_unknown(
    payer: LocalAccount, requirements: PaymentRequirements
) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serve(app) as url:
        remote = RemoteFacilitator(url, settle_seconds_max=0.5)
        with pytest.raises(SettlementUnknown, match="ReadTimeout"):
            await remote.settle(await sign(payer, requirements), requirements)
        await remote.aclose()


@pytest.mark.parametrize("url", [DEAD, "", "ftp://127.0.0.1", "http://["])
async def test_an_unreachable_facilitator_is_no_verdict_on_the_payment(
    payer: LocalAccount, requirements: PaymentRequirements, url: str
) -> None:
    remote = RemoteFacilitator(url)
    payload = await sign(payer, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.settle(payload, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.verify(payload, requirements)
    with pytest.raises(FacilitatorUnreachable):
        await remote.supported()
    await remote.aclose()
