"""What makes the answers of an application."""

from typing import TYPE_CHECKING

from chatkeep.answers.configured import ConfiguredProvider
from chatkeep.answers.provider import Provider
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.api.document_services import DocumentServices
from chatkeep.settings import Settings, mcp_variable, provider_key

if TYPE_CHECKING:
    from chatkeep.answers.mcp_tools import McpTools


def provider_of(settings: Settings, documents: DocumentServices) -> Provider | None:
    """Return what makes the answers of an application, from its settings, with what searches documents.

    Raises InvalidInput if the file of MCP servers is not valid.
    """
    if settings.provider == "none":
        return None
    if settings.provider == "configured":
        private = settings.may_reach_private
        return ConfiguredProvider(documents.search, provider_key, allow_private=private, tools=tools_of(settings))
    return ScriptedProvider(rate=0.0) if settings.provider == "scripted-fast" else ScriptedProvider()


def tools_of(settings: Settings) -> "McpTools | None":
    """Return the tools of the MCP servers that a file names, if there is one. Raises InvalidInput for its errors."""
    if settings.mcp_config is None:
        return None
    from chatkeep.answers.mcp_config import read_config
    from chatkeep.answers.mcp_tools import McpTools

    return McpTools(read_config(settings.mcp_config, mcp_variable), allow_private=settings.may_reach_private)
