"""Anchors of headings, as GitHub makes them. No I/O."""

import regex

MAX_ANCHOR_CHARS = 500
"""Longest anchor without '#' and number: beyond any that somebody links to."""

_LEFT_OUT = regex.compile(r"[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc} -]")
"""What is neither in a word (as Unicode's technical standard 18 has it) nor a space or a hyphen."""


class Anchors:
    """Makes the anchors of one document, each once. Takes linear time for any headings."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def add(self, heading: str) -> str | None:
        """Return the anchor of the next heading, with '#'; None if nothing of it is left. `heading` has no markup."""
        slug = self._unused(_LEFT_OUT.sub("", heading.lower()).replace(" ", "-")[:MAX_ANCHOR_CHARS])
        return f"#{slug}" if slug else None

    def _unused(self, slug: str) -> str:
        """Return a slug with -1, -2 … if it is in use; `_used` has the last number of each."""
        used, unused = self._used, slug
        while unused in used:
            used[slug] += 1
            unused = f"{slug}-{used[slug]}"
        used[unused] = 0
        return unused
