"""What the settlement book is told: where the chains are, which assets there are, and how much may go."""

from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Asset(BaseModel):
    """A coin that commands may name: its token's address, null for the network's own coin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = None
    decimals: int = Field(ge=0, le=36)


class Limits(BaseModel):
    """The most that may go, in whole coins; null is no limit. A day is one of UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Decimal | None = Field(default=None, gt=0, allow_inf_nan=False)
    payee_day: Decimal | None = Field(default=None, gt=0, allow_inf_nan=False)
    day: Decimal | None = Field(default=None, gt=0, allow_inf_nan=False)


class SettlementSettings(BaseSettings):
    """Environment variables TOLLBOOK_RPC_URLS, TOLLBOOK_SETTLEMENT_NETWORK and so on; tables as JSON.

    `rpc_urls`: {"eip155:8453": "https://…"}. `settlement_network` is the one that is meant where a command's
    chain_id is 0. `settlement_assets`: {"base": {"EURC": {"address": "0x…", "decimals": 6}}}; each network's
    coin and USDC are known. `settlement_limits`: {"base": {"USDC": {"command": "100", "payee_day": "500",
    "day": "10000"}}}. With `settlement_dry_run` nothing is sent: the command's error says what would happen.
    `facilitator_key_file` holds the operator's key, which pays.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOLLBOOK_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    rpc_urls: dict[str, str] = Field(default_factory=dict[str, str], repr=False)
    facilitator_key_file: Path | None = None
    settlement_network: str | None = None
    settlement_assets: dict[str, dict[str, Asset]] = Field(default_factory=dict[str, dict[str, Asset]])
    settlement_limits: dict[str, dict[str, Limits]] = Field(default_factory=dict[str, dict[str, Limits]])
    settlement_dry_run: bool = False
