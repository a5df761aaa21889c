"""Anthropic's own client, which takes nothing from the environment.

The library reads keys, a host and headers from the environment of the process. Here they could reach a host that an
administrator named: only what is passed is sent.
"""

from typing import Any

from anthropic import AsyncAnthropic


class AnthropicClient(AsyncAnthropic):
    """Anthropic's client; its copies are like it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.webhook_key = None
        self._custom_headers = options.get("default_headers") or {}
