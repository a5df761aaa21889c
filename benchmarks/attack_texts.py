"""Attacks by text: what is costly to normalise, to search for, to cut or to find again."""

import json
from functools import partial
from urllib.parse import quote

from benchmarks.attack_prepare import CONVERSATION, han
from benchmarks.attacker import Attack, Attacker

MESSAGES = f"/api/conversations/{CONVERSATION}/messages"
SECONDS = 5.0


def marks(characters: int) -> str:
    """Combining marks of two classes, all of the first before all of the second: in the wrong order."""
    return "\u0301" * (characters // 2) + "\u0327" * (characters // 2)


def kept_marks(characters: int) -> str:
    """The same of Hebrew marks, which are not removed as accents are."""
    return "\u0591" * (characters // 2) + "\u05b0" * (characters // 2)


def pairs_of_marks(characters: int) -> str:
    """A letter and marks of which half become two each."""
    return "a" + "\u0344" * (characters // 2) + "\u0327" * (characters // 2)


def said(content: str, role: str = "user") -> bytes:
    """A message as a body, in UTF-8."""
    return json.dumps({"role": role, "content": content}, ensure_ascii=False).encode()


def post_titled(attacker: Attacker, content: str) -> None:
    """Append to a new conversation, which takes its title from the message."""
    _, body = attacker.ask("POST", "/api/conversations", b"{}")
    id_ = json.loads(body or b"{}").get("id", CONVERSATION)
    attacker.ask("POST", f"/api/conversations/{id_}/messages", said(content))


def post_users(attacker: Attacker, content: str) -> None:
    """32 messages of a user, eight at a time."""
    attacker.at_once(8, partial(post_titled, attacker, content), times=4)


def post_assistant(attacker: Attacker, content: str, times: int) -> None:
    """Messages of an assistant, whose length has no limit but the body's."""
    for _ in range(times):
        attacker.ask("POST", MESSAGES, said(content, "assistant"))


def post_title(attacker: Attacker) -> None:
    """Conversations with a title of marks, as many as fit in."""
    body = json.dumps({"title": "t" + marks(254)}, ensure_ascii=False).encode()
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("POST", "/api/conversations", body))


def search(attacker: Attacker, query: str) -> None:
    """Search again and again."""
    path = f"/api/search?q={quote(query)}"
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("GET", path))


def search_phrases(attacker: Attacker, threads: int) -> None:
    """Phrases of 6,000 characters that messages contain, and such that are not in any."""

    def work(number: int) -> None:
        phrase = han(number % 20, 6_000) if number % 2 else han(number % 20, 5_999) + "龘"
        attacker.ask("GET", f"/api/search?q={quote(phrase)}")

    attacker.for_seconds(SECONDS, threads, work)


def words(count: int) -> str:
    """Many words, of two letters each."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join(letters[number // 26 % 26] + letters[number % 26] for number in range(count))


ATTACKS = (
    Attack("text-user", partial(post_users, content=marks(9_000)), "32 user messages of 9,000 marks of two classes"),
    Attack(
        "text-alternating",
        partial(post_users, content="\u0301\u0327" * 4_500),
        "32 user messages of 9,000 marks that alternate between two classes",
    ),
    Attack("text-kept", partial(post_users, content=kept_marks(9_000)), "32 user messages of 9,000 Hebrew marks"),
    Attack(
        "text-letters",
        partial(post_users, content=("a" + marks(98)) * 90),
        "32 user messages of letters with 98 marks each",
    ),
    Attack("text-title", post_title, "conversations with a title of 254 marks, for 5 s"),
    Attack(
        "text-assistant",
        partial(post_assistant, content=marks(140_000), times=2),
        "2 assistant messages of 140,000 marks",
    ),
    Attack(
        "text-8mb", partial(post_assistant, content=marks(4_100_000), times=1), "an assistant message of 8 MB of marks"
    ),
    Attack("text-query-64k", partial(search, query=pairs_of_marks(10_900)), "searches for 10,900 marks, for 5 s"),
    Attack("text-query-8k", partial(search, query=pairs_of_marks(1_300)), "searches for 1,300 marks, for 5 s"),
    Attack("text-stored", partial(search, query="needle"), "searches that find stored marks, for 5 s", ("marks",)),
    Attack("text-snippet", partial(search, query="needle"), "searches that find stored U+FDFA, for 5 s", ("snippets",)),
    Attack("text-cluster", partial(search, query="needle"), "searches that find long clusters, for 5 s", ("clusters",)),
    Attack("text-phrase-8", partial(search_phrases, threads=8), "8 searches at a time for 6,000 Han", ("han",)),
    Attack("text-phrase-32", partial(search_phrases, threads=32), "32 searches at a time for 6,000 Han", ("han",)),
    Attack("text-han-200", partial(search, query="的 " * 32), "searches for a frequent character 32 times", ("han",)),
    Attack("text-words", partial(search, query=words(12_000)), "searches for 12,000 words, for 5 s", ("han",)),
)  # fmt: skip
