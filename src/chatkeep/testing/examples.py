"""Values that stores must accept or refuse."""

import base64
import json
from collections.abc import Awaitable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from chatkeep.errors import InvalidId, InvalidInput
from chatkeep.model import Page

MALFORMED_IDS: tuple[Any, ...] = (
    "",
    "42",
    "tea",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a7",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a755",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a7g",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a_5",
    " 190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "+190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "٣190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75'; --",
    42,
    b"tea",
)
"""No UUIDs; `uuid.UUID(text)` accepts some of them, as another id than they spell."""


SENTENCES = (
    ("Latin", "Le vieux café du port rouvre demain matin.", "café"),
    ("Greek", "Η θάλασσα είναι ήσυχη σήμερα το πρωί.", "θάλασσα"),
    ("Cyrillic", "Сегодня утром идёт первый снег.", "снег"),
    ("Armenian", "Այսօր երկինքը կապույտ է։", "երկինքը"),
    ("Georgian", "დღეს ზღვა მშვიდია.", "ზღვა"),
    ("Hebrew", "הים שקט היום מאוד.", "שקט"),
    ("Arabic", "البحر هادئ اليوم.", "هادئ"),
    ("Devanagari", "आज समुद्र शांत है।", "समुद्र"),
    ("Bengali", "আজ আকাশ খুব নীল।", "আকাশ"),
    ("Gurmukhi", "ਅੱਜ ਅਸਮਾਨ ਨੀਲਾ ਹੈ।", "ਅਸਮਾਨ"),
    ("Tamil", "இன்று கடல் அமைதியாக இருக்கிறது.", "கடல்"),
    ("Telugu", "ఈ రోజు సముద్రం ప్రశాంతంగా ఉంది.", "సముద్రం"),
    ("Ethiopic", "ዛሬ ሰማይ ሰማያዊ ነው።", "ሰማይ"),
    ("Thai", "วันนี้ทะเลสงบมาก", "ทะเล"),
    ("Lao", "ມື້ນີ້ທະເລງຽບ", "ທະເລ"),
    ("Khmer", "ថ្ងៃនេះសមុទ្រស្ងប់", "សមុទ្រ"),
    ("Myanmar", "ဒီနေ့ပင်လယ်ငြိမ်တယ်", "ပင်လယ်"),
    ("Tibetan", "དེ་རིང་གནམ་སྔོན་པོ་རེད།", "གནམ"),
    ("Han", "我们明天早上去图书馆还书。", "图书"),
    ("Han, across a word", "他说北京大学生活动很多。", "学生"),
    ("Hiragana and Han", "明日の朝、図書館で本を返します。", "図書館"),
    ("Katakana", "朝はコーヒーを飲みます。", "コーヒー"),
    ("Hangul", "오늘 아침에 도서관에서 책을 빌렸다.", "도서관"),
)
"""A script, a sentence in it, and a word of the sentence."""


def forged(cursor: str) -> Iterator[str]:
    """Yield cursors in chatkeep's format with impossible positions; none if the store's format is another."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        return
    bad: tuple[object, ...] = (
        -1,
        0,
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        2**99,
        True,
        None,
        1.5,
        "",
        "tea",
        "\ud800",
        [],
        {},
    )
    for place in range(len(values)):
        for value in bad:
            text = json.dumps([*values[:place], value, *values[place + 1 :]])
            yield base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    wrong: tuple[object, ...] = (values[:-1], [*values, 1], [], {}, 5, None, "tea")
    for value in wrong:
        text = json.dumps(value)
        yield base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


async def refused_or_paged(call: Awaitable[Page[Any]], limit: int) -> None:
    """Check that a list with a forged cursor is refused, or is a page of its limit: no other error, no more items."""
    try:
        page = await call
    except (InvalidInput, InvalidId):
        return
    assert len(page.items) <= limit


PROPERTY = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
)
"""Settings of property tests. A disk has no deadline. All examples of a test share the store, each with an owner or
conversation of its own."""


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63, 2**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


JSON_OBJECTS = st.dictionaries(st.text(), JSON, max_size=5)


LABELS = st.text(min_size=1, max_size=255).filter(lambda text: not text.isspace())
