"""Who has paid and may sign in instead of paying again: the SDK's SIWxStorage."""

from contextvars import ContextVar
from datetime import timedelta

from tollbook.core.errors import Refusal
from tollbook.core.stores.connections import Connections, find_connections, hash_key

LIFETIME = timedelta(days=30)
NONCE_KEEP = timedelta(days=1)  # the SDK refuses messages older than five minutes


class NonceUsed(Refusal):
    """The nonce signed in before: this is a copy of that message."""

    reason = "nonce-used"
    status = 401


class PostgresSIWxStorage:
    """An `SIWxStorage` whose grants end, can be counted, and are the same in every process.

    A payment buys `lifetime`, and `uses_max` sign-ins where that is given; a further payment begins the
    lifetime anew and adds its sign-ins to what is left. `database` is an address or `Connections`.
    """

    def __init__(
        self,
        database: str | Connections,
        *,
        lifetime: timedelta = LIFETIME,
        uses_max: int | None = None,
    ) -> None:
        self._connections = find_connections(database)
        self._lifetime = lifetime
        self._uses_max = uses_max
        # The use that this task has taken with its last has_paid: record_nonce gives it back to a copy.
        self._taken: ContextVar[tuple[str, str] | None] = ContextVar("taken", default=None)

    def has_paid(self, resource: str, address: str) -> bool:
        """Whether the address may use the path now; where it may, this takes one use, in one statement."""
        grant = (_spell(address), resource)
        taken = self._connections.execute(
            """
            UPDATE stores.sign_in_grants SET uses_left = uses_left - 1
            WHERE address = %(address)s AND resource = %(resource)s
              AND expires_at > now() AND (uses_left IS NULL OR uses_left > 0)
            """,
            {"address": grant[0], "resource": grant[1]},
        )
        self._taken.set(grant if taken else None)
        return taken == 1

    def record_payment(self, resource: str, address: str) -> None:
        """The address has paid for the path."""
        self._connections.execute(
            """
            INSERT INTO stores.sign_in_grants AS g (address, resource, expires_at, uses_left)
            VALUES (%(address)s, %(resource)s, now() + %(lifetime)s::interval, %(uses_max)s)
            ON CONFLICT (address, resource) DO UPDATE
            SET expires_at = excluded.expires_at,
                uses_left = excluded.uses_left + CASE WHEN g.expires_at > now() THEN coalesce(g.uses_left, 0)
                                                      ELSE 0 END
            """,
            {
                "address": _spell(address),
                "resource": resource,
                "lifetime": self._lifetime,
                "uses_max": self._uses_max,
            },
        )

    def has_used_nonce(self, nonce: str) -> bool:
        """Whether the nonce has signed in before. Only `record_nonce` decides: another may be between."""
        row = self._connections.fetch(
            "SELECT used_at FROM stores.sign_in_nonces WHERE nonce_hash = %(nonce_hash)s",
            {"nonce_hash": hash_key(nonce)},
        )
        return row is not None

    def record_nonce(self, nonce: str) -> None:
        """Use the nonce up. Raises NonceUsed to all but the first, and the SDK then grants nothing."""
        taken, _ = self._taken.get(), self._taken.set(None)
        recorded = self._connections.execute(
            """
            INSERT INTO stores.sign_in_nonces (nonce_hash) VALUES (%(nonce_hash)s)
            ON CONFLICT (nonce_hash) DO NOTHING
            """,
            {"nonce_hash": hash_key(nonce)},
        )
        if not recorded:
            self._give_back(taken)
            raise NonceUsed(
                "This sign-in was used before. Ask for the resource again and sign its new nonce."
            )

    def has_record_nonce(self) -> bool:
        """True. x402 2.25 looks for a method of this name where it means `record_nonce`, and never calls it.

        Without it `create_siwx_request_hook` refuses every storage that tracks nonces.
        """
        return True

    def purge(self) -> int:
        """Delete the grants that ended and the nonces too old to be presented; how many."""
        grants = self._connections.execute(
            "DELETE FROM stores.sign_in_grants WHERE expires_at < now() OR uses_left = 0", {}
        )
        return grants + self._connections.execute(
            "DELETE FROM stores.sign_in_nonces WHERE used_at < now() - %(keep)s::interval",
            {"keep": NONCE_KEEP},
        )

    def _give_back(self, taken: tuple[str, str] | None) -> None:
        if taken is not None:
            self._connections.execute(
                """
                UPDATE stores.sign_in_grants SET uses_left = uses_left + 1
                WHERE address = %(address)s AND resource = %(resource)s
                """,
                {"address": taken[0], "resource": taken[1]},
            )


def _spell(address: str) -> str:
    """EVM addresses are the same in either case; Solana's are not."""
    return address.lower() if address[:2] in ("0x", "0X") else address
