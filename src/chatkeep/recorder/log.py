"""Says what happens, and ends nothing if it cannot be said."""

import logging
from contextlib import suppress


def say(
    logger: logging.Logger, level: int, message: str, *arguments: object, error: BaseException | None = None
) -> None:
    """Log a message, with the traceback of an error.

    A handler that raises, such as one that writes to the disk that is full, must not end a thread or a task that
    saves messages.
    """
    with suppress(Exception):
        logger.log(level, message, *arguments, exc_info=error)
