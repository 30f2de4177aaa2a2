"""What attempts mean for their endpoint: failing, asked to wait, gone, disabled after days of failing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tollbook.core.database import WriteTx
from tollbook.core.webhooks import rules, subscriptions
from tollbook.core.webhooks.sending import GONE, Outcome, read_retry_after


@dataclass(slots=True)
class Verdict:
    """What the attempts of one batch say of a subscription."""

    answers: bool = False
    failing_since: datetime | None = None
    error: str = ""
    gone: bool = False
    paused_until: datetime | None = None

    def took(self) -> None:
        """An attempt was taken."""
        self.answers, self.failing_since = True, None

    def failed(self, outcome: Outcome, *, began: datetime, now: datetime) -> None:
        """An attempt failed."""
        self.failing_since = self.failing_since or began
        self.error, self.gone = outcome.error or "", self.gone or outcome.status_code == GONE
        hold_off = read_retry_after(outcome.retry_after, now=now)
        if hold_off is not None:
            until = now + timedelta(seconds=hold_off)
            self.paused_until = max(until, self.paused_until or until)


def join(first: Mapping[str, Verdict], then: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Two batches as one; of a subscription in both, the later one counts."""
    return {**first, **then}


async def write_verdicts(tx: WriteTx, verdicts: Mapping[str, Verdict], *, now: datetime) -> None:
    """Enter them; a row is written only where something changes, for most batches change nothing."""
    for subscription_id, verdict in sorted(verdicts.items()):
        if verdict.failing_since is not None:
            await _enter_failure(tx, subscription_id, verdict, now)
    answering = [name for name, verdict in verdicts.items() if verdict.answers and not verdict.failing_since]
    if answering:
        await tx.execute(
            """
            UPDATE settlement.webhook_subscriptions SET failing_since = NULL
            WHERE subscription_id = ANY(%(answering)s) AND failing_since IS NOT NULL
            """,
            {"answering": answering},
        )


async def _enter_failure(tx: WriteTx, subscription_id: str, verdict: Verdict, now: datetime) -> None:
    since = await tx.value(
        """
        UPDATE settlement.webhook_subscriptions
        SET failing_since = CASE WHEN %(answers)s THEN %(since)s ELSE coalesce(failing_since, %(since)s) END,
            paused_until = greatest(paused_until, %(paused_until)s)
        WHERE subscription_id = %(subscription_id)s AND enabled
          AND (failing_since IS NULL OR %(answers)s OR %(paused_until)s > coalesce(paused_until, '-infinity')
               OR %(gone)s OR failing_since <= %(too_long)s)
        RETURNING failing_since
        """,
        {
            "subscription_id": subscription_id,
            "since": verdict.failing_since,
            "answers": verdict.answers,  # in between: then it fails since then only
            "paused_until": verdict.paused_until,
            "gone": verdict.gone,
            "too_long": now - rules.RETRY_MAX,
        },
    )
    if since is None:
        return
    if verdict.gone:
        await subscriptions.disable(tx, subscription_id, reason="the endpoint answered 410 Gone", now=now)
    elif since <= now - rules.RETRY_MAX:
        days = rules.RETRY_MAX.days
        reason = f"it failed for {days} days, last: {verdict.error}"
        await subscriptions.disable(tx, subscription_id, reason=reason, now=now)
