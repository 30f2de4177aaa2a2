"""What a command may ask for, and what it comes to on a chain: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from tollbook.books.settlement.settings import Asset, SettlementSettings
from tollbook.core import local_chain
from tollbook.core.chains import NETWORKS, MalformedAddress, find_network, is_solana, normalize_address
from tollbook.core.errors import Refusal

COIN_DECIMALS = 18
COINS = {
    local_chain.NETWORK: "ETH",
    "eip155:1": "ETH",
    "eip155:8453": "ETH",
    "eip155:84532": "ETH",
    "eip155:42161": "ETH",
    "eip155:421614": "ETH",
    "eip155:137": "POL",
    "eip155:43114": "AVAX",
}
UINT256_MAX = (1 << 256) - 1
NOBODY = "0x" + "0" * 40


class CommandUnpayable(Refusal):
    """A command that was received and cannot be carried out: it ends as refused, with this sentence."""

    reason: ClassVar[str] = "command-unpayable"
    status: ClassVar[int] = 422


@dataclass(frozen=True, slots=True)
class Terms:
    """What a command comes to on its network (CAIP-2): `asset` None is the network's own coin."""

    network: str
    asset: str | None
    decimals: int
    amount_minor: int
    payee: str


@dataclass(frozen=True, slots=True)
class Tables:
    """The assets of each network that is served, by symbol, and the network that chain_id 0 means."""

    assets: Mapping[str, Mapping[str, Asset]]
    default: str | None


def make_tables(settings: SettlementSettings) -> Tables:
    """What the settings come to. Raises UnknownNetwork, MalformedAddress."""
    named = {find_network(name).id: assets for name, assets in settings.settlement_assets.items()}
    served = [find_network(name).id for name in settings.rpc_urls if not is_solana(name)]
    assets = {network: {**_known(network), **_spell(named.get(network, {}))} for network in served}
    default = settings.settlement_network
    if default is not None:
        return Tables(assets, find_network(default).id)
    return Tables(assets, served[0] if len(served) == 1 else None)


def resolve(
    tables: Tables,
    *,
    chain_id: int,
    asset_symbol: str | None,
    asset: str | None,
    payee: str | None,
    amount: Decimal | None,
) -> Terms:
    """What is to be moved, in minor units. Raises CommandUnpayable."""
    network = f"eip155:{chain_id}" if chain_id else tables.default
    if network is None:
        raise CommandUnpayable("It names no network, and there is no TOLLBOOK_SETTLEMENT_NETWORK.")
    known = tables.assets.get(network)
    if known is None:
        served = ", ".join(tables.assets) or "none: set TOLLBOOK_RPC_URLS"
        raise CommandUnpayable(f"Network {network} is not served here. Served: {served}.")
    found = _find_asset(network, known, asset_symbol or None, asset)
    whom = _read_payee(payee)
    if whom == found.address:
        raise CommandUnpayable("The payee is the token itself: what goes there is lost.")
    return Terms(network, found.address, found.decimals, _count(amount, found.decimals), whom)


def _known(network: str) -> dict[str, Asset]:
    """What is known without being told: a network's coin and its USDC."""
    found: dict[str, Asset] = {}
    if network in COINS:
        found[COINS[network]] = Asset(decimals=COIN_DECIMALS)
    usdc = NETWORKS[network].usdc
    if usdc is not None:
        found[usdc.symbol] = Asset(address=usdc.address, decimals=usdc.decimals)
    return found


def _spell(assets: Mapping[str, Asset]) -> dict[str, Asset]:
    return {
        symbol: asset.model_copy(update={"address": asset.address and normalize_address(asset.address)})
        for symbol, asset in assets.items()
    }


def _find_asset(network: str, known: Mapping[str, Asset], symbol: str | None, address: str | None) -> Asset:
    if symbol is None and address is None:
        raise CommandUnpayable(f"It names no asset. Known on {network}: {', '.join(known)}.")
    for name, one in known.items():
        if symbol in (None, name) and address in (None, one.address):
            return one
    wanted = " at ".join(text for text in (symbol, address) if text)
    raise CommandUnpayable(f"Asset {wanted} is not known on {network}. Known: {', '.join(known)}.")


def _count(amount: Decimal | None, decimals: int) -> int:
    if amount is None:
        raise CommandUnpayable("It names no amount.")
    # In integers: Decimal's own context would round what has more than 28 digits.
    _, digits, exponent = amount.as_tuple()
    assert isinstance(exponent, int)
    whole, rest = divmod(int("".join(map(str, digits))) * 10 ** max(exponent + decimals, 0),
                         10 ** max(-exponent - decimals, 0))  # fmt: skip
    if rest:
        raise CommandUnpayable(f"Amount {amount:f} has more than the asset's {decimals} decimals.")
    if not 0 < whole <= UINT256_MAX:
        raise CommandUnpayable(f"Amount {amount:f} is beyond what a token can count.")
    return whole


def _read_payee(payee: str | None) -> str:
    if not payee:
        raise CommandUnpayable("It names no payee.")
    try:
        address = normalize_address(payee)
    except MalformedAddress as malformed:
        raise CommandUnpayable(f"Payee: {malformed}") from None
    if address == NOBODY:
        raise CommandUnpayable("The payee is the zero address: what goes there is lost.")
    return address
