"""What the payments book is told about a seller: what is sold, who is paid, and where the chains are."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tollbook.books.payments.rules import PaidRoute, Payee


class PaymentsSettings(BaseSettings):
    """Environment variables TOLLBOOK_ROUTES, TOLLBOOK_PAYEES, TOLLBOOK_RPC_URLS as JSON.

    `routes` as the paywall has them: {"GET /weather": {"price": "$0.01", "requests": 100}}; `payees`:
    [{"network": "base", "address": "0x…"}]; `rpc_urls`: {"eip155:8453": "https://…"}, by CAIP-2 id.
    `facilitator_key_file` and `solana_key_file` hold the operator's keys, which pay refunds.
    `channel_key` (TOLLBOOK_CHANNEL_KEY, 64 hexadecimal digits) seals the vouchers of payment channels.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOLLBOOK_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    routes: dict[str, PaidRoute] = Field(default_factory=dict[str, PaidRoute])
    payees: list[Payee] = Field(default_factory=list[Payee])
    rpc_urls: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    channel_key: SecretStr | None = None
    facilitator_key_file: Path | None = None
    solana_key_file: Path | None = None
