"""The server's log: a line for each request, as text or JSON. It holds no content and no owner names."""

import hashlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

FIELDS = "chatkeep_fields"
"""Attribute of a log record for its structured fields."""


class HumanFormatter(logging.Formatter):
    """Formats a record as one line of text, its fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text."""
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        line = super().format(record)
        return line + "".join(f" {name}={value}" for name, value in fields.items())


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(form: Literal["human", "json"], level: str) -> None:
    """Send the logs of chatkeep, uvicorn and the MCP SDK to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if form == "json" else HumanFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    for name in ("chatkeep", "uvicorn", "mcp"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("chatkeep").setLevel(level.upper())
    for name in ("uvicorn", "mcp"):
        logging.getLogger(name).setLevel("WARNING")


def owner_hash(owner: str) -> str:
    """Return a pseudonym of an owner for the log."""
    return hashlib.sha256(f"chatkeep {owner}".encode()).hexdigest()[:12]
