"""What webhooks refuse, and what to do then."""

from tollbook.core.errors import Refusal


class UrlRefused(Refusal):
    """The URL cannot be an endpoint: its form, or where it leads."""

    reason = "webhook-url-refused"
    status = 422
    exit_code = 2


class EventTypeMalformed(Refusal):
    """Not an event type, nor the beginning of one with a star."""

    reason = "webhook-event-type-malformed"
    status = 422
    exit_code = 2


class SubscriptionMalformed(Refusal):
    """Something else of a subscription cannot stand."""

    reason = "webhook-malformed"
    status = 422
    exit_code = 2


class SubscriptionNotFound(Refusal):
    """No subscription has this id."""

    reason = "webhook-not-found"
    status = 404

    def __init__(self, subscription_id: str) -> None:
        super().__init__(f"There is no webhook {subscription_id[:40]}. tollbook webhooks list shows them.")


class SubscriptionsFull(Refusal):
    """No more subscriptions fit."""

    reason = "webhooks-full"
    status = 409


class RotatedTooOften(Refusal):
    """As many secrets as fit are valid."""

    reason = "webhook-rotated-too-often"
    status = 409


class DeliveryNotFound(Refusal):
    """This subscription has no such delivery."""

    reason = "webhook-delivery-not-found"
    status = 404


class DeliveryNotReplayable(Refusal):
    """The delivery cannot be sent again."""

    reason = "webhook-delivery-not-replayable"
    status = 409


class ReplayTooLarge(Refusal):
    """More events than one replay takes."""

    reason = "webhook-replay-too-large"
    status = 422


class SecretUnreadable(Refusal):
    """The secret was sealed with another key, or not by us."""

    reason = "webhook-secret-unreadable"
    status = 503
