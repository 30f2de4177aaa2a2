"""What the operator allows webhooks to reach: environment variables TOLLBOOK_WEBHOOKS_*."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tollbook.core.errors import Refusal


class WebhookSettingsUnusable(Refusal):
    """A variable of the environment cannot be read."""

    reason = "webhook-settings-unusable"
    status = 503


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


def read_settings() -> WebhookSettings:
    """What the environment says. Raises WebhookSettingsUnusable."""
    try:
        return WebhookSettings()
    except ValidationError as error:
        names = {f"TOLLBOOK_WEBHOOKS_{each['loc'][0]}".upper() for each in error.errors()}
        raise WebhookSettingsUnusable(
            f"{' and '.join(sorted(names))} cannot be read. ALLOW_HTTP is 1 or 0; ALLOW_NETWORKS is like "
            "10.1.0.0/16,::1/128, without bits beyond the prefix."
        ) from None
