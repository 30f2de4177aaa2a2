"""`tollbook payments channels`: what payment channels owe their seller, and fetching it."""

import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from tollbook.core.commands import answer, ask, json_option, storage_options
from tollbook.core.database import Database
from tollbook.core.settings import Settings

# The SDK, and what stands on it, takes a second to import: who has loaded this for another command need not.
if TYPE_CHECKING:
    from tollbook.books.payments.facilitator.in_process import Facilitator
    from tollbook.books.payments.schemes.channels import Channel, Claim


@click.group("channels")
def channels_group() -> None:
    """Payment channels (scheme batch-settlement): what they owe, and fetching it."""


@channels_group.command("list")
@storage_options
@json_option
def list_channels(*, settings: Settings, as_json: bool) -> None:
    """List the channels, those that owe most first."""

    from tollbook.books.payments.schemes import channels
    from tollbook.books.payments.schemes.batch import find_storage

    async def read(database: Database) -> "list[Channel]":
        return channels.list_channels(find_storage(database.url))

    found = ask(settings, read)
    rows = found if as_json else [_shorten(channel) for channel in found]
    answer(rows, as_json=as_json, title="Channels, amounts in minor units", empty="No channels yet.")


@channels_group.command("claim")
@click.option("--network", required=True, metavar="NETWORK", help="By name or CAIP-2 id.")
@click.option("--facilitator", "url", metavar="URL", help="Who claims: the one that the channels name.")
@storage_options
@json_option
def claim_channels(*, settings: Settings, network: str, url: str | None, as_json: bool) -> None:
    """Claim what the channels of a network owe, and have it paid out to their receivers.

    Without --facilitator the operator's key of this machine does it (TOLLBOOK_FACILITATOR_KEY or
    TOLLBOOK_FACILITATOR_KEY_FILE), by the nodes of TOLLBOOK_RPC_URLS. Ends with 1 where something was left.
    """
    from tollbook.books.payments.schemes import channels
    from tollbook.core.chains import find_network

    chain = find_network(network).id

    async def claim(database: Database) -> "list[Claim]":
        async with aclosing(_open_facilitator(url, database)) as facilitator:
            return await channels.claim_network(database, facilitator, chain)

    done = ask(settings, claim)
    answer(done, as_json=as_json, title="Claimed, in minor units", empty="No channels on this network.")
    if any(claim.problem for claim in done):
        sys.exit(1)


def _open_facilitator(url: str | None, database: Database) -> "Facilitator":
    from tollbook.books.payments.facilitator.in_process import InProcessFacilitator
    from tollbook.books.payments.facilitator.remote import RemoteFacilitator
    from tollbook.books.payments.settings import PaymentsSettings
    from tollbook.core.operator_keys import read_operator_key

    if url is not None:
        return RemoteFacilitator(url)
    settings = PaymentsSettings()
    key = read_operator_key(settings.facilitator_key_file, os.environ)
    return InProcessFacilitator(settings.rpc_urls, key, database)


def _shorten(channel: "Channel") -> dict[str, object]:
    """What fits a terminal's width of a channel."""
    return {
        "channel": f"{channel.channel_id[:10]}…",
        "payer": f"{channel.payer[:8]}…{channel.payer[-4:]}",
        "receiver": f"{channel.receiver[:8]}…{channel.receiver[-4:]}",
        "balance": channel.balance,
        "charged": channel.charged,
        "claimed": channel.claimed,
        "unclaimed": channel.unclaimed,
        "last request": f"{channel.last_request_at:%Y-%m-%d %H:%M}",
        "withdrawing": f"{channel.withdrawing_since:%Y-%m-%d %H:%M}" if channel.withdrawing_since else None,
    }
