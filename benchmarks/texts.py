"""The texts that are stored: the same ones in every run and on both sides."""

import random
from functools import cache

VOCABULARY = 8_000
CHARACTERS = 400


@cache
def texts(count: int = 5_000) -> list[str]:
    """Texts of 400 characters, made of 8,000 words."""
    source = random.Random(20_250_101)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 10))) for _ in range(VOCABULARY)]
    return [" ".join(source.choices(words, k=CHARACTERS // 3))[:CHARACTERS] for _ in range(count)]


def text(writer: int, number: int) -> str:
    """The text of a writer's message."""
    all_texts = texts()
    return all_texts[(writer * 157 + number) % len(all_texts)]
