"""The official x402 SDK's stores, kept in PostgreSQL: shared by processes, and there after a restart.

Each is one line, with the address of a database; the tables are made when they are missing:

    from tollbook.core.stores import PostgresPendingSettlementStore
    store = PostgresPendingSettlementStore("postgresql:///app")

Several stores of one process may share a pool: pass `Connections(url)` in place of the address. Their methods
block, as the SDK's interfaces do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tollbook.core.stores.channels import PostgresChannelStorage as PostgresChannelStorage
    from tollbook.core.stores.client_channels import (
        PostgresClientChannelStorage as PostgresClientChannelStorage,
    )
    from tollbook.core.stores.connections import Connections as Connections
    from tollbook.core.stores.payment_identifiers import (
        PostgresPaymentIdentifiers as PostgresPaymentIdentifiers,
    )
    from tollbook.core.stores.pending_settlements import (
        PostgresPendingSettlementStore as PostgresPendingSettlementStore,
    )
    from tollbook.core.stores.settlement_cache import PostgresSettlementCache as PostgresSettlementCache
    from tollbook.core.stores.sign_ins import PostgresSIWxStorage as PostgresSIWxStorage

# Loaded when first asked for: the cache needs the SDK's Solana libraries, the channels its EVM ones.
_HOMES = {
    "Connections": "connections",
    "PostgresChannelStorage": "channels",
    "PostgresClientChannelStorage": "client_channels",
    "PostgresPaymentIdentifiers": "payment_identifiers",
    "PostgresPendingSettlementStore": "pending_settlements",
    "PostgresSettlementCache": "settlement_cache",
    "PostgresSIWxStorage": "sign_ins",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
