"""How files become documents: what they are, their text, and its passages."""

from chatkeep.extras import missing

try:
    import markdown_it  # noqa: F401 - to check that it is installed
except ModuleNotFoundError as error:
    raise missing(error, "chatkeep.reading", "documents") from error
