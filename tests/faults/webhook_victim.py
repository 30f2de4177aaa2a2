"""Tells webhooks and dies where a test wants it to: one process imports everything, and forks for each life.

It reads one JSON order a line. A life tells all there is to tell, counting its boundaries: each statement and
each transaction that PostgreSQL is asked to finish, and each POST, before and after. At the one it was told
it is killed; else it says how many there were.
"""

import asyncio
import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from fixtures.webhooks import KEY, LOCAL
from tollbook.core import clock
from tollbook.core.database import Database
from tollbook.core.webhooks import dispatch
from tollbook.core.webhooks.sender import Sender
from tollbook.core.webhooks.sending import Post


class Life:
    """One life, and what it has passed."""

    def __init__(self, database_url: str, dies_at: int, late: int) -> None:
        self.database_url, self.dies_at, self.late = database_url, dies_at, timedelta(minutes=10 * late)
        self.passed = 0

    def reach(self) -> None:
        """Pass a boundary, or die there."""
        self.passed += 1
        if self.passed == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def live(self) -> None:
        async with Database(self.database_url) as database, Post(LOCAL) as post:
            sender = Sender(database, post, KEY, now=lambda: clock.now() + self.late)
            self.count()
            while await dispatch.dispatch(database, now=clock.now() + self.late):
                pass
            while await sender.send_due():
                pass

    def count(self) -> None:
        """From now on count what is passed."""
        execute, leave, send = psycopg.AsyncCursor.execute, psycopg.AsyncTransaction.__aexit__, Post.send

        async def execute_counted(cursor: Any, *args: Any, **options: Any) -> Any:
            alone = cursor.connection.info.transaction_status == TransactionStatus.IDLE
            self.reach() if alone else None
            done = await execute(cursor, *args, **options)
            self.reach() if alone else None
            return done

        async def leave_counted(transaction: Any, *error: Any) -> Any:
            self.reach()
            done = await leave(transaction, *error)
            self.reach()
            return done

        async def send_counted(post: Any, *args: Any) -> Any:
            self.reach()
            outcome = await send(post, *args)
            self.reach()
            return outcome

        psycopg.AsyncCursor.execute = execute_counted
        psycopg.AsyncTransaction.__aexit__, Post.send = leave_counted, send_counted


def main() -> None:
    """Fork a life for each order, and say how it ended."""
    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            life = Life(**order)
            asyncio.run(life.live())
            os.write(write, str(life.passed).encode())
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as told:
            ended = {"killed": os.WIFSIGNALED(status), "passed": int(told.read() or 0)}
        os.write(1, json.dumps(ended).encode() + b"\n")


if __name__ == "__main__":
    main()
