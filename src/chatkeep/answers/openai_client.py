"""OpenAI's own client, which takes nothing from the environment.

The library reads keys, an organization, a host and headers from the environment of the process. Here they could reach a
host that an administrator named: only what is passed is sent.
"""

from typing import Any

from openai import AsyncOpenAI


class OpenAIClient(AsyncOpenAI):
    """OpenAI's client; its copies are like it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.organization = self.project = self.admin_api_key = self.webhook_secret = None
        self._custom_headers = options.get("default_headers") or {}
