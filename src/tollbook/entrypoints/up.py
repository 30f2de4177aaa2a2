"""`tollbook up`: the database, its migrations, the API and the worker, in one process; and each part alone."""

import asyncio
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tollbook.core.commands import check_connection, open_database, refuse_memory
from tollbook.core.local_chain import LocalChainMissing
from tollbook.core.settings import Settings
from tollbook.entrypoints import demo, serving
from tollbook.entrypoints.serving import Site, Teller, listening, terminable
from tollbook.migrate.url import redact

if TYPE_CHECKING:
    from tollbook.core.embedded import Server

ADMIN_KEY_FILE = "admin.key"


@dataclass(frozen=True, slots=True)
class Wish:
    """What `tollbook up` was asked for."""

    books: tuple[str, ...]
    settings: Settings
    host: str
    port: int
    demo: bool
    as_json: bool


def start(wish: Wish) -> None:
    """Start everything and return when it was asked to stop, with nothing left running.

    Raises PortTaken before anything was started, EmbeddedServerFailed, DatabaseUnreachable, and what the
    migration engine refuses.
    """
    serving.log_warnings()
    teller = Teller(wish.as_json)
    with terminable(), ExitStack() as stack:
        listener = stack.enter_context(listening(wish.host, wish.port))
        shop_listener = stack.enter_context(listening(wish.host, wish.port + 1)) if wish.demo else None
        stage = _open_stage(stack, wish, teller) if shop_listener else None
        teller.say("database-starting", f"Database     {_describe(wish.settings)}")
        url = stack.enter_context(open_database(wish.settings))
        _migrate(url, wish.books, teller)
        asyncio.run(_run(wish, url, listener, shop_listener, stage, teller))
    teller.say("stopped", "Stopped; nothing is left running.")


def run_worker(settings: Settings, *, as_json: bool) -> None:
    """Run the jobs alone until asked to stop. Raises what opening the database raises."""
    serving.log_warnings()
    refuse_memory(settings)
    teller = Teller(as_json)
    with terminable(), open_database(settings) as url:
        teller.say("working", f"Working on {redact(url)}; Ctrl-C stops.")
        asyncio.run(serving.run([], {"worker": worker.run(url)}))
    teller.say("stopped", "Stopped.")


def run_facilitator(
    rpc_urls: dict[str, str], key_file: Path | None, host: str, port: int, *, as_json: bool
) -> None:
    """Serve a facilitator until asked to stop. Raises OperatorKeyUnusable, PortTaken."""
    from tollbook.books.payments.facilitator import InProcessFacilitator
    from tollbook.books.payments.facilitator_server import facilitator_app
    from tollbook.books.payments.facilitator_signer import read_operator_key

    serving.log_warnings()
    teller = Teller(as_json)
    key = read_operator_key(key_file, os.environ)
    with terminable(), listening(host, port) as listener:

        async def run() -> None:
            facilitator = InProcessFacilitator(rpc_urls, key)
            try:
                await serving.run([Site(facilitator_app(facilitator), listener)], {})
            finally:
                await facilitator.aclose()

        networks = ", ".join(rpc_urls)
        teller.say("serving", f"Facilitator of {networks} on http://{host}:{port}; Ctrl-C stops.")
        asyncio.run(run())
    teller.say("stopped", "Stopped.")
