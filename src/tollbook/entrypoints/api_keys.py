"""`tollbook keys`: API keys made, listed and revoked from the command line."""

import click

from tollbook.core import clock, keys
from tollbook.core.commands import Id, answer, ask, json_option, storage_options, to_plain
from tollbook.core.database import Database
from tollbook.core.settings import Settings

LIST_MAX = 500
ADMIN_NAME = "admin (made at the first start)"


@click.group("keys")
def group() -> None:
    """API keys and their scopes."""


@group.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="As payments:read, or *; repeatable.")
@storage_options
@json_option
def create(name: str, *, settings: Settings, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make an API key. Its secret is shown now and never again."""

    async def make(database: Database) -> keys.KeyGrant:
        async with database.write() as tx:
            return await keys.create(tx, name=name, scopes=scopes, now=clock.now())

    grant = ask(settings, make)
    shown = {"secret": grant.secret, **to_plain(grant.key)}
    answer(shown, as_json=as_json, title="Keep the secret: it is shown this once.")


@group.command("list")
@storage_options
@json_option
def list_keys(*, settings: Settings, as_json: bool) -> None:
    """List the API keys, the newest first, without their secrets."""

    async def read(database: Database) -> list[keys.Key]:
        async with database.read() as tx:
            return await keys.page(tx, limit=LIST_MAX)

    answer(ask(settings, read), as_json=as_json, title="API keys, newest first", empty="No keys yet.")


@group.command("revoke")
@click.argument("key_id", type=Id("key"))
@storage_options
@json_option
def revoke(key_id: int, *, settings: Settings, as_json: bool) -> None:
    """Revoke an API key: it is refused from now on."""

    async def end(database: Database) -> keys.Key:
        async with database.write() as tx:
            return await keys.revoke(tx, key_id, now=clock.now())

    answer(ask(settings, end), as_json=as_json)


async def ensure_admin(url: str) -> str | None:
    """Make a key for everything where there is no key yet, and return its secret; else None."""
    async with Database(url, connections_max=1) as database, database.write() as tx:
        if await keys.page(tx, limit=1):
            return None
        return (await keys.create(tx, name=ADMIN_NAME, scopes=["*"], now=clock.now())).secret
