"""The server's log: a line for each request, for people or as JSON. Never content, never an owner's name."""

import hashlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

FIELDS = "chatkeep_fields"
"""The attribute of a log record that holds its fields."""


class HumanFormatter(logging.Formatter):
    """One line, its fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        line = super().format(record)
        return line + "".join(f" {name}={value}" for name, value in fields.items())


class JsonFormatter(logging.Formatter):
    """One JSON object."""

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
    """Send the log of chatkeep and of the server to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if form == "json" else HumanFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    for name in ("chatkeep", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("chatkeep").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("WARNING")


def owner_hash(owner: str) -> str:
    """What stands for an owner in the log: the same for the same one, and not their name."""
    return hashlib.sha256(f"chatkeep {owner}".encode()).hexdigest()[:12]
