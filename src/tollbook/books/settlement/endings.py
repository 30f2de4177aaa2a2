"""How what was begun ends without paying: taken back, or given up, once nothing of it can come any more.

A node may have taken what it said it refused. So a purpose is barred in the lanes in the transaction that
says that it came to nothing, and that is said only when the nonce of what was refused is another's for good.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from psycopg import Rollback

from tollbook.books.settlement import commands, due
from tollbook.books.settlement.commands import Command
from tollbook.books.settlement.due import Due, TakenBack
from tollbook.books.settlement.errors import CommandNotInState
from tollbook.core.database import Database, WriteTx
from tollbook.core.lanes import Transaction, endings

ASKED_BACK = "Not sent any more. It is cancelled when a worker has seen that nothing of it can come."
LAST = "The last time: "

logger = logging.getLogger(__name__)


async def cancel(
    tx: WriteTx, command_id: str, reason: str | None, *, although_it_may_come: bool = False, now: datetime
) -> Command:
    """Take a command back; `executed` still where a worker has to see first that nothing of it can come.

    It is sent no more from the commit on. `although_it_may_come`: whoever asks takes the risk that a node
    brings out what it said it refused. Raises CommandNotInState where a transaction of it is under way,
    CommandUnknown.
    """
    if not await commands.cancel(tx, command_id, reason, now=now):
        await commands.get(tx, command_id)
        one, may_come = await due.get(tx, command_id), None
        if one.status == "executed":
            may_come = await endings.bar(tx, one.transfer.network, one.transfer.purpose)
        if may_come is None:
            raise CommandNotInState(command_id, one.status, "cancelled")
        await commands.ask_back(tx, command_id, reason or "", now=now)
        if although_it_may_come or not (one.round or may_come):  # a worker knows of the rounds before
            await commands.take_back(tx, command_id, now=now)
        else:
            await wait(tx, one, ASKED_BACK, until=now, now=now)
    return await commands.get(tx, command_id)


async def bar(tx: WriteTx, one: Due, own: Transaction | None) -> bool:
    """Whether it is ours to end, and no worker that stood still meanwhile can send it any more.

    `own` is what the lanes had of it when the chain was looked at: nothing of that can come. Raises Rollback
    where more was signed meanwhile.
    """
    if not await due.lock(tx, [one]):
        return False
    may_come = await endings.bar(tx, one.transfer.network, one.transfer.purpose)
    if not {*(may_come or [])} <= {*(own.hashes + own.former_hashes if own else [])}:
        raise Rollback
    return may_come is not None


async def give_up(tx: WriteTx, one: Due, why: str, *, now: datetime) -> None:
    """Nothing of it was sent, and nothing will be: it was barred in this transaction."""
    if await commands.take_back(tx, one.command_id, now=now):
        return
    error = f"Nothing was sent, and {why}. {LAST}{await _get_last(tx, one)}"
    await commands.fail(tx, one.command_id, error, now=now)


async def wait(tx: WriteTx, one: Due, says: str, *, until: datetime, now: datetime) -> None:
    """Write down what it waits for, beside what went wrong last, and look at it again then."""
    error = f"{says} {LAST}{await _get_last(tx, one)}"
    await commands.postpone(tx, one.command_id, error, next_attempt_at=until, counted=False, now=now)


async def say_keyless(tx: WriteTx, one: Due, sent: Transaction, *, until: datetime, now: datetime) -> None:
    """Nobody here can look after what was sent for it."""
    error = (
        f"{sent.hash} may be on its way from {sent.sender}, whose key is not here: nobody sends it again, or "
        "offers more for it. Configure the key again until it is done."
    )
    await commands.postpone(tx, one.command_id, error, next_attempt_at=until, counted=False, now=now)


async def reopen(database: Database, one: TakenBack, now: datetime) -> None:
    """Open a settled command again, unless another transaction has settled it by now."""
    async with database.write() as tx:
        why = f"{one.tx_hash} was final, and a reorganisation took it back: it is paid again."
        if await commands.reopen(tx, one.command_id, why, tx_hash=one.tx_hash, now=now):
            logger.error("%s: %s", one.command_id, why)


def describe(one: Due, hidden: Transaction, addresses: Sequence[str]) -> str:
    """What it waits for, of which a node may yet bring `hidden` out, and what can be done."""
    what = (
        f"A node said that it refused it under nonce {hidden.nonce} of {hidden.sender}, and may have taken "
        "it all the same: what became of that is known when the nonce is used."
    )
    if hidden.sender not in addresses:
        what += " The key of that account is not here: configure it again, or use the nonce from elsewhere."
    elif one.cancelling is None:
        return what
    return f"{what} Or take the risk (tollbook settlement cancel {one.command_id} --although-it-may-come)."


async def _get_last(tx: WriteTx, one: Due) -> str:
    last = await due.get_error(tx, one.command_id) or "nothing was said"
    return last.rpartition(LAST)[2]
