"""What the payments book refuses, each with the sentence that says what to do next."""

from datetime import datetime

from tollbook.core import ids
from tollbook.core.errors import Refusal


class PaymentUnknown(Refusal):
    """No payment has this id."""

    reason = "payment-unknown"
    status = 404

    def __init__(self, payment_id: int) -> None:
        shown = ids.show("pay", payment_id)
        super().__init__(f"There is no payment {shown}. List them: tollbook payments list.", payment_id=shown)


class AlreadyCounted(Refusal):
    """This authorization or transaction was presented before. `payment_id` is the payment it belongs to."""

    reason = "payment-already-counted"
    status = 409

    def __init__(self, payment_id: int) -> None:
        self.payment_id = payment_id
        shown = ids.show("pay", payment_id)
        super().__init__(
            f"This payment was presented before, as {shown}, and counts once. Use the token it bought, "
            "or pay again with a new authorization. Where that token was lost, the payer gets another by "
            "claiming the transaction: POST /v1/payments.",
            payment_id=shown,
        )


class PaymentNotInState(Refusal):
    """The payment's state does not allow what was asked; nothing was changed."""

    reason = "payment-not-in-state"
    status = 409

    def __init__(self, payment_id: int, status: str, settlement: str, wanted: str) -> None:
        self.payment_id = payment_id
        self.payment_status = status
        self.settlement = settlement
        shown = ids.show("pay", payment_id)
        super().__init__(
            f"Payment {shown} is {status} (settlement {settlement}) and cannot be {wanted}. Nothing was "
            f"changed; see tollbook payments show {shown}.",
            payment_id=shown,
            payment_status=status,
            settlement=settlement,
        )


class TokenUnknown(Refusal):
    """No such access token was ever issued."""

    reason = "token-unknown"
    status = 401

    def __init__(self) -> None:
        super().__init__("This access token is not known here. Pay for a new one; the 402 answer says how.")


class TokenRevoked(Refusal):
    """The access token was revoked."""

    reason = "token-revoked"
    status = 401

    def __init__(self) -> None:
        super().__init__("This access token was revoked. Use the one that replaced it, or pay for a new one.")


class TokenForeign(Refusal):
    """The access token was bought for another route."""

    reason = "token-foreign"
    status = 401

    def __init__(self) -> None:
        super().__init__("This access token was bought for another route. Pay for this one.")


class TokenExpired(Refusal):
    """The access token's time, or its payment's, is over."""

    reason = "token-expired"
    status = 402

    def __init__(self) -> None:
        super().__init__("This access token has expired. Pay again for a new one.")


class TokenSpent(Refusal):
    """All requests that the payment bought have been made."""

    reason = "token-spent"
    status = 402

    def __init__(self) -> None:
        super().__init__("All requests of this payment are used. Pay again for more.")


class TooManyWaiting(Refusal):
    """More requests wait for the database than this process will hold."""

    reason = "too-many-waiting"
    status = 503
    retry_after_seconds = 1

    def __init__(self) -> None:
        super().__init__(
            "Too many requests wait at once. Nothing was counted; try again in a second.",
            retry_after_seconds=self.retry_after_seconds,
        )


class NotRecorded(Refusal):
    """Whether the request's usage row is on disk is not known: it must not be answered as a success."""

    reason = "usage-not-recorded"
    status = 503

    def __init__(self) -> None:
        super().__init__(
            "The database went away while this request was being recorded. It may have been counted; "
            "try again in a second."
        )


class TokenNotFound(Refusal):
    """No token has this id (for operators; who presents a secret is told TokenUnknown)."""

    reason = "token-not-found"
    status = 404

    def __init__(self, token_id: int) -> None:
        shown = ids.show("tok", token_id)
        super().__init__(f"There is no token {shown}. List them: tollbook tokens list.", token_id=shown)


class TokenAlreadyRevoked(Refusal):
    """The token was revoked before; nothing was changed."""

    reason = "token-already-revoked"
    status = 409

    def __init__(self, token_id: int, at: datetime | None) -> None:
        shown = ids.show("tok", token_id)
        super().__init__(f"Token {shown} was revoked at {at}. Nothing remains to be done.", token_id=shown)
