"""Where Tollbook finds its database and keeps its files: environment variables TOLLBOOK_*."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The settings every book shares. A command's options win over the environment."""

    model_config = SettingsConfigDict(
        env_prefix="TOLLBOOK_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    data_dir: Path = Path("~/.local/share/tollbook")
    storage: Literal["disk", "memory"] = "disk"
    database_url: str | None = Field(default=None, validation_alias="DATABASE_URL", repr=False)
    secret_key: SecretStr | None = None
    secret_key_file: Path | None = None
