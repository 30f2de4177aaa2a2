"""`tollbook up`: database, migrations, API and worker in one process; and each part alone."""

import asyncio
import json
import os
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tollbook.books.payments.settings import PaymentsSettings
from tollbook.core.commands import open_database, refuse_memory
from tollbook.core.database import Database
from tollbook.core.local_chain import NETWORK, LocalChainMissing
from tollbook.core.operator_keys import KEY_VARIABLE
from tollbook.core.settings import Settings
from tollbook.entrypoints import api, api_keys, demo, migrations, serving, worker
from tollbook.entrypoints.serving import Site, Teller, listening, terminable
from tollbook.migrate.url import redact

ADMIN_KEY_FILE = "admin.key"
BACKUP_FOLDER = "backups"


@dataclass(frozen=True, slots=True)
class Wish:
    """What `tollbook up` was asked for."""

    books: tuple[str, ...]
    settings: Settings
    host: str
    port: int
    demo: bool
    as_json: bool

    @property
    def in_memory(self) -> bool:
        """Whether all of it goes when it stops."""
        return self.settings.database_url is None and self.settings.storage == "memory"

    def say_url(self, port: int) -> str:
        """Where one of the sites is found from this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
        url = stack.enter_context(open_database(wish.settings))
        teller.say("database", f"Database     {_name_database(wish, url)}", url=redact(url))
        migrations.bring_up_to_date(url, wish.books, wish.settings.data_dir / BACKUP_FOLDER, teller)
        stage = _open_stage(stack, wish, teller) if wish.demo else None
        _make_admin_key(wish, url, teller)
        sites = [Site(_make_api(wish, url, stage), listener)]
        jobs: dict[str, Coroutine[Any, Any, object]] = {"worker": _work(url, wish.settings)}
        teller.say("api", f"API          {wish.say_url(wish.port)}   (/docs /metrics /healthz)")
        if stage is not None and shop_listener is not None:
            sites.append(Site(demo.make_shop(stage, url), shop_listener))
            jobs["agent"] = _open_shop(wish, stage, teller)
        teller.say("ready", "Ready        Ctrl-C stops everything.")
        asyncio.run(serving.run(sites, jobs))
        teller.say("stopping", "Stopping ...")
    teller.say("stopped", "Stopped; nothing is left running.")


def _name_database(wish: Wish, url: str) -> str:
    if wish.settings.database_url is not None:
        return redact(url)
    where = "in memory, gone when this stops" if wish.in_memory else f"in {wish.settings.data_dir}"
    return f"embedded PostgreSQL {where}\n             {url}"


def _open_stage(stack: ExitStack, wish: Wish, teller: Teller) -> demo.Stage | None:
    """Start the demonstration's chain; without Node say so, and go on without it.

    The worker reads from the environment where the chains are and who pays there: this process's own names
    that one, and its operator.
    """
    folder = None if wish.in_memory else wish.settings.data_dir / demo.FOLDER
    try:
        stage = stack.enter_context(demo.open_stage(folder))
        if "TOLLBOOK_RPC_URLS" not in os.environ:
            os.environ["TOLLBOOK_RPC_URLS"] = json.dumps({NETWORK: stage.chain.url})
            os.environ.setdefault(KEY_VARIABLE, "0x" + stage.operator.key.hex())
    except LocalChainMissing as missing:
        teller.say("demo-missing", f"No demonstration: {missing}")
        return None
    teller.say(
        "chain", f"Local chain  {stage.chain.url}   (USDC double at {stage.token})", url=stage.chain.url
    )
    return stage


def _open_shop(wish: Wish, stage: demo.Stage, teller: Teller) -> Coroutine[Any, Any, object]:
    url = wish.say_url(wish.port + 1)
    teller.say(
        "shop", f"Paid API     {url}/weather/lisbon   ({demo.PRICE} for {demo.REQUESTS} requests)", url=url
    )
    teller.say("facilitator", f"Facilitator  {url}/facilitator/supported", url=f"{url}/facilitator")
    teller.say("agent", f"Agent        {stage.buyer.address} buys every few seconds:")
    return demo.Agent(url, stage, teller).run()


def _make_api(wish: Wish, url: str, stage: demo.Stage | None) -> Any:
    """Return the API; in a demonstration it also takes transactions of its chain as payments."""
    if stage is None:
        return api.create_api(url, books=wish.books, core=wish.settings)
    selling = PaymentsSettings(
        routes=demo.make_routes(), payees=demo.make_payees(stage), rpc_urls={NETWORK: stage.chain.url}
    )
    return api.create_api(url, selling, wish.books, wish.settings)


def _make_admin_key(wish: Wish, url: str, teller: Teller) -> None:
    """At the first start make a key for everything, kept beside the data where only we can read it."""
    secret = asyncio.run(api_keys.ensure_admin(url))
    if secret is None:
        return
    if wish.in_memory:
        teller.say("admin-key", f"Admin key    {secret}   (gone when this stops)", secret=secret)
        return
    file = wish.settings.data_dir / ADMIN_KEY_FILE
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secret + "\n")
    teller.say(
        "admin-key",
        f'Admin key    in {file}   (curl -H "Authorization: Bearer $(cat {file})")',
        file=str(file),
    )


async def _work(url: str, settings: Settings) -> None:
    async with Database(url, application="tollbook worker") as database:
        await worker.run_worker(database, worker.JOBS, worker.make_services(settings), asyncio.Event())


def run_worker(settings: Settings, *, as_json: bool) -> None:
    """Run the jobs alone until asked to stop. Raises what opening the database raises."""
    serving.log_warnings()
    refuse_memory(settings)
    teller = Teller(as_json)
    with terminable(), open_database(settings) as url:
        teller.say("working", f"Working on {redact(url)}; Ctrl-C stops.")
        asyncio.run(serving.run([], {"worker": _work(url, settings)}))
    teller.say("stopped", "Stopped.")
