"""`tollbook facilitator`: the self-hosted facilitator alone, for x402 servers in any language."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tollbook.books.payments.facilitator.families import FamilyFacilitator, make_facilitator
from tollbook.books.payments.facilitator.server import facilitator_app
from tollbook.core.commands import open_database
from tollbook.core.operator_keys import read_operator_keys
from tollbook.core.settings import Settings
from tollbook.entrypoints import migrations, serving
from tollbook.entrypoints.serving import Site, Teller, listening, terminable
from tollbook.migrate.url import redact

BACKUP_FOLDER = "backups"


@dataclass(frozen=True, slots=True)
class Wish:
    """What `tollbook facilitator` was asked for. A family's key without a file comes from the environment."""

    settings: Settings
    rpc_urls: Mapping[str, str]
    key_files: Sequence[Path]
    recipients: Sequence[str]
    confirmations: Mapping[str, int]
    signs_refunds: bool
    fee_per_gas_max: int | None
    host: str
    port: int
    as_json: bool


def run_facilitator(wish: Wish) -> None:
    """Serve a facilitator until asked to stop.

    Raises OperatorKeyUnusable, MalformedAddress, RecipientMissing, PortTaken.
    """
    serving.log_warnings()
    teller = Teller(wish.as_json)
    keys = read_operator_keys(wish.key_files, os.environ)
    _make(wish, keys, "")  # refused before anything is started
    with terminable(), listening(wish.host, wish.port) as listener, open_database(wish.settings) as url:
        teller.say("database", f"Database     {redact(url)}", url=redact(url))
        migrations.bring_up_to_date(url, migrations.BOOKS, wish.settings.data_dir / BACKUP_FOLDER, teller)

        async def run() -> None:
            facilitator = _make(wish, keys, url)
            try:
                await facilitator.open()
                await serving.run(
                    [Site(facilitator_app(facilitator, signs_refunds=wish.signs_refunds), listener)], {}
                )
            finally:
                await facilitator.aclose()

        networks = ", ".join(wish.rpc_urls)
        teller.say("serving", f"Facilitator of {networks} on http://{wish.host}:{wish.port}; Ctrl-C stops.")
        asyncio.run(run())
    teller.say("stopped", "Stopped.")


def _make(wish: Wish, keys: Sequence[str], url: str) -> FamilyFacilitator:
    return make_facilitator(
        wish.rpc_urls,
        keys,
        url,
        confirmations=wish.confirmations,
        recipients=wish.recipients,
        fee_per_gas_max=wish.fee_per_gas_max,
    )
