"""The settings of the server and the command line: the only reader of the environment."""

from functools import cached_property

from platformdirs import user_data_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

LOCAL_OWNER = "local"
"""The owner of everything while there is no authentication."""


class Settings(BaseSettings):
    """Each setting is an environment variable with the prefix CHATKEEP_, such as CHATKEEP_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="CHATKEEP_", frozen=True)

    database_url: str | None = Field(None, description="Where the conversations are; a file of the user's when absent.")
    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Names that requests may come to besides localhost, as a JSON list."
    )
    max_body_bytes: int = Field(8 << 20, gt=0, description="Largest request body.")

    @cached_property
    def store_url(self) -> str:
        """The URL of the store, with the default filled in; the folder of the default file is made."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{user_data_path('chatkeep', ensure_exists=True) / 'chat.db'}"
