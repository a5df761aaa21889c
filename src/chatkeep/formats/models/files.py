"""Files of a message, by reference: an address, the data in one, or the id that a provider knows it by."""

import base64
import re
from typing import NamedTuple

from chatkeep.parts import Part

WEB = ("https://", "http://")
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}|[A-Za-z0-9_-]+={0,2}", re.ASCII)
ANY_IMAGE = "image/*"
"""The media type of an image of which no more is known."""


class File(NamedTuple):
    """A file that a model may be given. It has a url, data or an id."""

    media_type: str
    """Empty if it is not known."""
    name: str | None
    url: str | None = None
    """On the web."""
    data: str | None = None
    """In base64."""
    id: str | None = None

    @property
    def kind(self) -> str:
        """The first half of the media type, such as `image`."""
        return self.media_type.partition("/")[0]

    @property
    def data_url(self) -> str:
        """The data as a URL."""
        return f"data:{self.media_type};base64,{self.data}"

    @property
    def address(self) -> str | None:
        """A URL, on the web or of the data."""
        return self.url if self.data is None else self.data_url


def file_of(part: Part, schemes: tuple[str, ...] = WEB) -> File | None:
    """Return the file of a part; None if it has none of these schemes, no data in base64, and no id."""
    media_type, name, url, id_ = (
        value if isinstance(value := part.get(field), str) and value else None
        for field in ("media_type", "name", "url", "file_id")
    )
    if url and url.startswith("data:"):
        return _inline(url, media_type, name)
    if url and url.startswith(schemes):
        return File(media_type or "", name, url=url)
    return File(media_type or "", name, id=id_) if id_ and not url else None


def _inline(url: str, media_type: str | None, name: str | None) -> File | None:
    head, _, data = url.partition(",")
    if not head.endswith(";base64") or not is_base64(data):
        return None
    return File(media_type or head[5:-7], name, data=data)


def part_of(
    *, url: str | None = None, file_id: str | None = None, media_type: str | None = None, name: str | None = None
) -> Part:
    """Return a part of a file, with what is known of it."""
    if media_type is None and url and url.startswith("data:"):
        media_type = url[5:].partition(",")[0].removesuffix(";base64") or None
    known = {"url": url, "file_id": file_id, "media_type": media_type, "name": name}
    return {"type": "file", **{field: value for field, value in known.items() if value is not None}}


def data_url(media_type: str, data: str) -> str:
    """Return data in base64 as a URL."""
    return f"data:{media_type};base64,{data}"


def is_base64(text: object) -> bool:
    """Whether a text is base64 that every decoder takes, of either alphabet."""
    if not isinstance(text, str) or len(text) % 4 or not BASE64.fullmatch(text):
        return False
    end = text[-4:]
    return base64.urlsafe_b64encode(base64.urlsafe_b64decode(end)).decode() == end.replace("+", "-").replace("/", "_")
