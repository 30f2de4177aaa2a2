"""What the operator allows webhooks to reach: environment variables TOLLBOOK_WEBHOOKS_*."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class WebhookSettings(BaseSettings):
    """TOLLBOOK_WEBHOOKS_ALLOW_HTTP lets URLs be http://; without it they are https:// alone.

    TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS, as "10.1.0.0/16,::1/128", lets them lead into these networks, which are
    not of the public Internet; without it into none.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOLLBOOK_WEBHOOKS_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    allow_http: bool = False
    allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()

    @field_validator("allow_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )
