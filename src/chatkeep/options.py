"""The options of a store. No I/O."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal, Self

from pydantic import Field, ValidationError

from chatkeep.errors import InvalidInput
from chatkeep.model import MAX_CONTENT_CHARS, MAX_SOURCES, Given
from chatkeep.validation import first_wrong
from chatkeep.values import (
    MAX_INTEGER_DIGITS,
    MAX_JSON_DEPTH,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_METADATA_VALUES,
    MetadataLimits,
)


class StoreOptions(Given):
    """Options of a store: keywords of `open_store`, or in the query of the URL."""

    max_content_chars: int = Field(default=MAX_CONTENT_CHARS, ge=0)
    """Longest content of a user or system message, in characters; 0 means no limit."""
    max_metadata_bytes: int = Field(default=MAX_METADATA_BYTES, ge=2, le=MAX_METADATA_BYTES)
    """Most bytes of metadata, as compact JSON. This and the next three can only be lower than the default. The next
    three hold for the parts of a message, too."""
    max_metadata_values: int = Field(default=MAX_METADATA_VALUES, ge=1, le=MAX_METADATA_VALUES)
    """Most values in metadata: the items of all its lists and objects."""
    max_metadata_depth: int = Field(default=MAX_JSON_DEPTH, ge=1, le=MAX_JSON_DEPTH)
    """Deepest nesting of metadata, in levels; the metadata itself is the first."""
    max_metadata_digits: int = Field(default=MAX_INTEGER_DIGITS, ge=19, le=MAX_INTEGER_DIGITS)
    """Most digits of an integer in metadata; every integer of 64 bits has at most 19."""
    max_sources: int = Field(default=MAX_SOURCES, ge=0, le=MAX_SOURCES)
    """Most sources of a message. It can only be lower than the default."""
    hide_foreign: bool | None = None
    """Answer NotFound for somebody else's conversation, instead of NotYours. Default: false; true if sharded, because
    checking would query every shard."""
    max_page_bytes: int = Field(default=8 << 20, ge=1, le=1 << 30)
    """Most bytes of one page of conversations, messages or hits: their contents, and their parts, sources and metadata
    as JSON. A page that reaches it ends there, with a cursor; one item alone may be larger."""
    search: bool = True
    """Keep the full-text index up to date with every write. `?search=off` makes appends cheaper."""
    synchronous: Literal["full", "normal"] = "full"
    """SQLite: `full` syncs the disk at every commit; `normal` may lose the last commits when power fails."""
    write_timeout: float = Field(default=10.0, gt=0)
    """Seconds that a call that writes may take; then it raises StoreUnavailable, and may have been executed: retry it
    with the same ids. Erasing, deleting and importing: each step. Closing waits as long for writes in progress."""
    read_timeout: float = Field(default=10.0, gt=0)
    """Seconds that a call that reads may take; then it raises StoreUnavailable."""
    readers: int = Field(default=4, ge=1, le=64)
    """SQLite: number of reading connections. Searches, totals and late pages have half as many more, one owner half of
    those."""
    durability: Literal["full", "relaxed"] = "full"
    """PostgreSQL: with `full` every commit waits for the disk, whatever synchronous_commit is set to, and a server with
    fsync or full_page_writes off is refused; `relaxed` takes the server as it is set.
    MongoDB: `relaxed` takes a weaker write concern, read concern or read preference from the URL, which may
    lose or hide what was acknowledged; `full` refuses it."""
    pool_size: int = Field(default=10, ge=3, le=1_000)
    """PostgreSQL, MongoDB: most open connections. Fewer are used if PostgreSQL has no more left. Searches, totals and
    late pages use half of them at most, those of one owner a quarter. On PostgreSQL `ping` has one more of its own."""
    pool_timeout: float = Field(default=10.0, gt=0)
    """PostgreSQL, MongoDB: seconds until a call that waits for a connection raises StoreUnavailable."""
    pgbouncer: bool | None = None
    """PostgreSQL: whether it is behind a pooler in transaction mode. Default: detected when connecting."""

    @property
    def metadata_limits(self) -> MetadataLimits:
        """The most that metadata of a message or a conversation may hold."""
        limits = MetadataLimits(
            self.max_metadata_depth, self.max_metadata_values, self.max_metadata_bytes, self.max_metadata_digits
        )
        return MAX_METADATA if limits == MAX_METADATA else limits

    @classmethod
    def of(cls, given: Mapping[str, str | float]) -> Self:
        """Return the options with these values. Raises InvalidInput, which names the options that there are."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = first_wrong(error)
        known = f"options are {', '.join(cls.model_fields)}"
        if first.type != "extra_forbidden":
            raise InvalidInput(f"the store option {first}; {known}")
        name = str(first.loc[0])
        meant = "".join(f"; did you mean {each}?" for each in get_close_matches(name.lower(), cls.model_fields, 1))
        raise InvalidInput(f"there is no store option {name}{meant or ';'} {known}")


MISSPELT = 0.85
"""How much alike an option and one of the store are if it is that one, misspelt. No option of a driver comes close:
lock_timeout is 0.75 like pool_timeout, and maxPoolSize 0.8 like pool_size."""


def is_store_option(name: str) -> bool:
    """Whether an option in a URL is one of the store's, as it is spelt or misspelt, and not one of a driver."""
    return bool(get_close_matches(name.lower(), StoreOptions.model_fields, 1, MISSPELT))
