"""URLs of stores: how they are taken apart, and what may be shown of them.

A password with an unescaped `/`, `?`, `#` or `@` puts a part of itself in the place of the host, the port or the path.
So a URL that is not understood is never shown, nor put into an error.
"""

import re
from difflib import get_close_matches
from urllib.parse import SplitResult, urlsplit

from chatkeep.errors import InvalidInput

FILE_SCHEMES = ("memory", "sqlite")
SERVER_SCHEMES = ("postgresql", "postgres", "mongodb", "mongodb+srv")

ENCODE = "in a user name and a password, percent-encode all but letters and digits"

_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.%-]*)(?::[0-9]{0,5})?"
_AUTHORITY = re.compile(rf"(?:[^@]*@)?{_HOST}(?:,{_HOST})*")
_PORTS = re.compile(r":([0-9]{1,5})(?=,|$)")

MAX_PORT = 65_535


def split_url(url: str) -> SplitResult:
    """Return the parts of a store's URL. Raises InvalidInput, which holds nothing of the URL."""
    try:
        url.encode()  # a file's name in another encoding than UTF-8 is no text, and no database takes it
    except UnicodeEncodeError:
        raise InvalidInput("a store's URL must be text of valid Unicode") from None
    try:
        parts = urlsplit(url)
    except ValueError:  # its message may hold the host
        raise InvalidInput(f"the store's URL is not valid; {ENCODE}") from None
    if parts.scheme not in (*FILE_SCHEMES, *SERVER_SCHEMES):
        schemes = ", ".join(f"{scheme}://" for scheme in (*FILE_SCHEMES, *SERVER_SCHEMES))
        raise InvalidInput(f"a store's URL must begin with one of {schemes}{_suggestion(parts.scheme)}")
    if parts.scheme in FILE_SCHEMES and parts.netloc:
        raise InvalidInput("a store's URL needs three slashes before a relative path, four before an absolute one")
    if parts.scheme in SERVER_SCHEMES and not _names_a_server(url, parts):
        raise InvalidInput(
            f"the store's URL must look like {parts.scheme}://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE; {ENCODE}"
        )
    if parts.scheme in SERVER_SCHEMES and any(int(port) > MAX_PORT for port in _PORTS.findall(parts.netloc)):
        raise InvalidInput(f"a port in the store's URL must be at most {MAX_PORT}")
    return parts


def _suggestion(scheme: str) -> str:
    """What may be meant by a scheme, as the end of a sentence, which holds nothing of it."""
    base, plus, _driver = scheme.partition("+")
    found = get_close_matches(base, (*FILE_SCHEMES, *SERVER_SCHEMES), 1, 0.7)
    if found:
        return f"; did you mean {found[0]}://{', without the name of a driver' if plus else ''}?"
    return "" if scheme else "; a file is sqlite:///FILE, or sqlite:////FILE with its whole path"


def without_secrets(url: str) -> str:
    """Return what may be shown of a store's URL: not its password, nor the values in its query."""
    try:
        parts = split_url(url)
    except InvalidInput:
        return "(a URL that is not understood)"
    shown = url.partition("?")[0].partition("#")[0]
    user, _, host = parts.netloc.rpartition("@")
    if ":" in user:
        shown = shown.replace(f"{user}@{host}", f"{user.partition(':')[0]}:***@{host}", 1)
    return f"{shown}?***" if parts.query else shown


def _names_a_server(url: str, parts: SplitResult) -> bool:
    options = parts.query.split("&") if parts.query else []
    return (
        url[len(parts.scheme) :].startswith("://")
        and _AUTHORITY.fullmatch(parts.netloc) is not None
        and not parts.fragment
        and "@" not in parts.path
        and all("=" in option for option in options)
    )
