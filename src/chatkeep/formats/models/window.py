"""The newest messages of a path that fit a budget of tokens, without parting a call from its result."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from chatkeep.formats.models.steps import CALL, FILE, REASONING, RESULT, as_text, blocks_of, pair_key
from chatkeep.model import Message, NewMessage, Role, Status
from chatkeep.parts import TEXT, Part

type Either = Message | NewMessage

MESSAGE_TOKENS = 4
"""What a message takes beside its text: OpenAI counts 3 for each, and 1 for a name."""

FILE_TOKENS = 1_600
"""What a file is taken to need: an image has at most about so many tokens for Anthropic, width by height / 750."""

LATIN, OTHER = 4, 2
"""Characters of a token. OpenAI says 4 of English text ("What are tokens and how to count them?"). A Chinese, Japanese
or Korean character is about one token in the vocabularies of GPT-4 and later. Other scripts are between them."""

WIDE = re.compile(
    "[\u1100-\u11ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00010000-\U0003ffff]+"
)
NARROW = re.compile("[\u0250-\u10ff\u1200-\u1fff\u2070-\u2e7f\ua4d0-\ua95f\ua980-\uabff\ufb00-\ufe2f\ufe50-\ufeff]+")
CUT = "\n[…]\n"
"""Stands where a question was cut."""


def estimate(text: str) -> int:
    """Return about how many tokens a text has, rather too many than too few."""
    if text.isascii():
        return -(-len(text) // LATIN)
    wide, other = (sum(map(len, each.findall(text))) for each in (WIDE, NARROW))
    return wide + -(-other // OTHER) + -(-(len(text) - wide - other) // LATIN)


class Window(NamedTuple):
    """What a model is given of a path."""

    messages: list[Either]
    """Those of the system first, then the newest, in their order."""
    left_out: int | None
    """How many are not given; None if that is not known."""
    summary: str | None
    """A line that says so, for a message of the system; None if nothing is left out. The budget does not count it."""


def window(messages: Sequence[Either], budget: int, count: Callable[[str], int] = estimate) -> Window:
    """Return the newest messages of a path that have at most `budget` tokens. Counts each message once.

    Messages of the system are kept first, whatever they need, and so is the last question: with its middle cut if it is
    longer than what they leave. What was kept begins with a question if something before it is left out. A call is
    never parted from its result: of what belongs together all is kept or nothing.
    """
    given = list(filter(_is_given, messages))
    taken = Windowing(budget, count, system=[message for message in given if message.role is Role.SYSTEM])
    rest = [message for message in given if message.role is not Role.SYSTEM]
    fed = 0
    for message in reversed(rest):
        fed += 1
        if not taken.add(message):
            break
    return taken.window(older=rest[: len(rest) - fed])


class Windowing:
    """Makes a window of messages that come newest first, such as the pages of a history: until it needs no more."""

    def __init__(self, budget: int, count: Callable[[str], int] = estimate, *, system: Iterable[Either] = ()) -> None:
        """Begin with the messages of the system, which are kept whatever they need."""
        self._count = count
        self._system = list(filter(_is_given, system))
        self._left = budget - sum(tokens(message, count) for message in self._system)
        self._newest: list[Either] = []
        """What is kept, the newest first."""
        self._costs: list[int] = []
        self._out: list[Either] = []
        """What is not, the newest first."""
        self.seen = 0
        """How many messages came that a model may be given."""
        self._is_full = self._has_question = False

    def add(self, message: Either) -> bool:
        """Take the next older message. Returns whether an older one may be kept, too.

        Messages of the system are left out here, and those that no model is given are passed over.
        """
        if not _is_given(message):
            return True
        self.seen += 1
        if message.role is Role.SYSTEM:
            self._out.append(message)
            return self._goes_on
        if message.role is Role.USER and not self._has_question:
            self._ask(message)
        elif self._is_full:
            self._out.append(message)
        else:
            self._take(message, tokens(message, self._count))
        return self._goes_on

    def _take(self, message: Either, cost: int) -> None:
        """Keep a message, or leave it and all older ones out."""
        self._is_full = cost > self._left
        if self._is_full:
            self._out.append(message)
            return
        self._newest.append(message)
        self._costs.append(cost)
        self._left -= cost

    def _ask(self, question: Either) -> None:
        """Keep the last question, if need be in place of what came after it."""
        self._has_question = True
        cost = tokens(question, self._count)
        while cost > self._left and self._newest:
            self._left += self._costs.pop()
            self._out.append(self._newest.pop())
            self._is_full = True
        if cost > self._left:
            question, cost, self._is_full = self._cut(question), self._left, True
        self._newest.append(question)
        self._left -= cost

    @property
    def _goes_on(self) -> bool:
        return not (self._is_full and self._has_question)

    def window(self, older: Sequence[Either] | int | None = 0) -> Window:
        """Return the window. `older` are the messages that were not added, or how many they are; None: unknown."""
        older_ = list(filter(_is_given, older)) if isinstance(older, Sequence) else []
        unseen = older if isinstance(older, int | None) else len(older_)
        kept, parted = _whole(self._newest)
        out = [*older_, *reversed(self._out), *parted]
        kept.reverse()
        if out or unseen != 0:
            begin = next((n for n, message in enumerate(kept) if message.role is Role.USER), 0)
            out, kept = [*out, *kept[:begin]], kept[begin:]
        left_out = None if unseen is None else len(out) + unseen - len(older_)
        knows_oldest = isinstance(older, Sequence) or older == 0
        return Window([*self._system, *kept], left_out, _summary(out, left_out, knows_oldest=knows_oldest))

    def _cut(self, question: Either) -> Either:
        """The question without as much of the middle of its text as is needed. It is counted some twenty times."""
        texts: list[str] = [part["text"] for part in question.parts or () if _has_text(part)]
        text = "\n".join(texts) or question.content
        others = [part for part in question.parts or () if not _has_text(part)]
        room = self._left - MESSAGE_TOKENS - FILE_TOKENS * sum(part["type"] == FILE for part in others)
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(_middle_cut(text, middle)) <= room else (low, middle - 1)
        cut = _middle_cut(text, low)
        parts = (*others, {"type": TEXT, "text": cut}) if others else None
        return question.model_copy(update={"content": cut, "parts": parts})


def _middle_cut(text: str, chars: int) -> str:
    """The beginning and the end of a text, with so many characters together; all of it if it has no more."""
    if chars >= len(text):
        return text
    return text[: -(-chars // 2)] + CUT + text[len(text) - chars // 2 :]


def tokens(message: Either, count: Callable[[str], int] = estimate) -> int:
    """Return about how many tokens a model reads for a message."""
    parts = message.parts or ()
    texts = [text for part in parts for text in _texts(part)]
    if not any(map(_has_text, parts)):
        texts.append(message.content)
    return count("\n".join(texts)) + MESSAGE_TOKENS + FILE_TOKENS * sum(map(_files, parts))


def _has_text(part: Part) -> bool:
    return part["type"] == TEXT and isinstance(part.get("text"), str)


def _files(part: Part) -> int:
    if part["type"] == RESULT:
        return sum(map(_files, blocks_of(part.get("content")) or ()))
    return int(part["type"] == FILE)


def _texts(part: Part) -> Iterator[str]:
    """What a model reads of a part."""
    fields = READ.get(part["type"], ())
    values = (part[field] for field in fields if part.get(field) is not None)
    for value in values:
        blocks = blocks_of(value) if part["type"] == RESULT else None
        yield from [as_text(value)] if blocks is None else (text for block in blocks for text in _texts(block))


READ = {
    TEXT: ("text",),
    REASONING: ("text", "signature"),
    CALL: ("name", "arguments"),
    RESULT: ("content",),
}
"""The fields that a model reads."""


def _is_given(message: Either) -> bool:
    return message.status not in (Status.DELETED, Status.IN_PROGRESS)


def _whole(newest: Sequence[Either]) -> tuple[list[Either], list[Either]]:
    """What of the newest messages has its calls and results together, and what has not: a result without its call.

    A result without a call has it further back, or nowhere. Messages that share calls stay or go together.
    """
    together = _Together(len(newest))
    open_: defaultdict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for n, message in enumerate(newest):
        for part in reversed(message.parts or ()):
            if message.role not in (Role.TOOL, Role.ASSISTANT):
                continue
            if part["type"] == RESULT:
                open_[pair_key(part, "tool_call_id")].append(n)
            elif part["type"] == CALL:
                for other in open_.pop(pair_key(part, "id"), ()):
                    together.join(n, other)
    alone = {together.first(n) for waiting in open_.values() for n in waiting}
    kept = [together.first(n) not in alone for n in range(len(newest))]
    return (
        [message for message, is_kept in zip(newest, kept, strict=True) if is_kept],
        [message for message, is_kept in zip(newest, kept, strict=True) if not is_kept],
    )


class _Together:
    """Which of n belong together, in nearly linear time."""

    def __init__(self, n: int) -> None:
        self._before = list(range(n))

    def first(self, n: int) -> int:
        """Return the one that stands for all that belong together with n."""
        while self._before[n] != n:
            self._before[n] = n = self._before[self._before[n]]
        return n

    def join(self, one: int, other: int) -> None:
        """Let two belong together."""
        self._before[self.first(one)] = self.first(other)


# --- what was left out -------------------------------------------------------------------------------------

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def _summary(out: Sequence[Either], left_out: int | None, *, knows_oldest: bool) -> str | None:
    if left_out == 0:
        return None
    many = "Earlier messages" if left_out is None else f"{left_out:,} earlier message{'' if left_out == 1 else 's'}"
    times = [time for message in out if (time := _time(message))]
    dates = f", {_dates(min(times), max(times), knows_oldest=knows_oldest)}," if times else ""
    return f"[{many}{dates} {'is' if left_out == 1 else 'are'} left out]"


def _time(message: Either) -> datetime | None:
    return message.sent_at or (message.created_at if isinstance(message, Message) else None)


def _dates(first: datetime, last: datetime, *, knows_oldest: bool) -> str:
    """The days, in UTC, of messages."""
    first, last = first.astimezone(UTC), last.astimezone(UTC)
    if not knows_oldest:
        return f"until {_day(last)}"
    if first.date() == last.date():
        return f"of {_day(last)}"
    if first.year != last.year:
        return f"from {_day(first)} to {_day(last)}"
    month = "" if first.month == last.month else f" {MONTHS[first.month - 1]}"
    return f"from {first.day}{month} to {_day(last)}"


def _day(time: datetime) -> str:
    return f"{time.day} {MONTHS[time.month - 1]} {time.year}"
