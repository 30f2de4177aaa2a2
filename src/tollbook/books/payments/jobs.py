"""What the payments book does by the clock: expire, count, and make room for the weeks to come."""

from typing import cast

from tollbook.books.payments import analytics, answers, partitions, refund_desk
from tollbook.books.payments.reconciler import reconcile as reconciler
from tollbook.books.payments.schemes import channels
from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core.database import Database
from tollbook.core.jobs import Job

EXPIRED_A_CALL = 10_000  # as cleanup_expired_x402_payments() has it
CALLS_MAX = 1_000
# How webhooks show what an event is about: the journal has its number.
ID_PREFIXES = {
    "payments.payment.": "pay",
    "payments.token.": "tok",
    "payments.refund.": "ref",
    "payments.difference.": "dif",
}


async def clean_up(database: Database) -> int:
    """Expire every payment that is past its time; how many there were."""
    total = 0
    for _ in range(CALLS_MAX):
        async with database.write() as tx:
            expired = cast(int, await tx.value("SELECT payments.cleanup_expired_x402_payments()"))
        total += expired
        if expired < EXPIRED_A_CALL:
            break
    return total


async def count_up(database: Database) -> int:
    """Bring the analytics up to date; how many hours were counted."""
    async with database.write() as tx:
        return await analytics.update(tx)


async def reconcile_open(database: Database) -> int:
    """Decide what is open, by the nodes of the environment; how many differences are open."""
    async with reconciler.open_reconciler(database, PaymentsSettings()) as ours:
        return (await ours.run_open()).open_count


async def reconcile(database: Database) -> int:
    """Compare all that is recent or new with the chains; how many differences are open."""
    async with reconciler.open_reconciler(database, PaymentsSettings()) as ours:
        return (await ours.run()).open_count


JOBS: list[Job] = [
    Job("payments.clean_up", "3 * * * *", clean_up),
    Job("payments.count_up", "8 * * * *", count_up),
    Job("payments.forget_answers", "*/10 * * * *", answers.forget),
    Job("payments.claim_channels", "17 * * * *", channels.claim_all),
    Job("payments.reconcile_open", "* * * * *", reconcile_open),
    Job("payments.reconcile", "33 * * * *", reconcile),
    Job("payments.send_refunds", "* * * * *", refund_desk.carry_out_open),
    Job("payments.make_partitions", "23 3 * * *", partitions.make_partitions),
]
