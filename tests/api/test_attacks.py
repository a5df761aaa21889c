"""Attacks on `chatkeep serve` as a process: what another owner and a probe of /readyz see meanwhile.

Those of bodies and of connections have tests of their own. All attacks, on both databases: `make attacks`.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from benchmarks.attack_list import ATTACKS
from benchmarks.attack_run import Place, measure
from benchmarks.attack_server import Checkout, Databases, databases

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

WORST_SECONDS = 1.0
"""Longest wait of another owner. On a quiet machine it is a fraction; machines that run tests are not quiet."""

REWRITE_SECONDS = 30.0
"""As WORST_SECONDS, while a SQLite file of 300 MB is rewritten: nobody writes meanwhile, which takes 2.7 s on a quiet
machine, and took 11 s on a slow one beside all other tests."""

MEMORY_MB = 300
"""Most memory that an attack may add."""

BOUNDS = {
    "text-user": (WORST_SECONDS, MEMORY_MB),
    "text-stored": (WORST_SECONDS, MEMORY_MB),
    "text-phrase-8": (WORST_SECONDS, MEMORY_MB),
    "json-patch-small": (WORST_SECONDS, MEMORY_MB),
    "erase-again": (REWRITE_SECONDS, MEMORY_MB),
    "auth-issuer": (WORST_SECONDS, MEMORY_MB),
}
"""For each attack the longest wait in seconds and the most memory in MB."""

SHORT_SECONDS = 3.0
"""When an attack is stopped in `make check` whose requests are all alike."""

ALIKE = ("text-user", "text-stored", "text-phrase-8", "auth-issuer")

ELSEWHERE = ("text-user", "erase-again")
"""What other tests have in a smaller size: the texts of test_fuzz, and test_erase_load."""

LENGTHS = [
    *(
        pytest.param(name, SHORT_SECONDS if name in ALIKE else ATTACKS[name].seconds, id=name)
        for name in BOUNDS
        if name not in ELSEWHERE
    ),
    *(
        pytest.param(name, ATTACKS[name].seconds, id=f"{name} long", marks=pytest.mark.apart)
        for name in BOUNDS
        if name in (*ALIKE, *ELSEWHERE)
    ),
]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Databases]:
    """Databases on SQLite, filled once for all attacks."""
    with databases(Checkout.at(None), "sqlite") as made:
        yield made


@pytest.mark.parametrize(("name", "seconds"), LENGTHS)
def test_others_are_served_during_an_attack(prepared: Databases, name: str, seconds: float) -> None:
    """Another owner waits for a bounded time, /readyz is always 200, and memory is bounded."""
    row = measure(Place(prepared, 1), replace(ATTACKS[name], seconds=seconds))
    worst, memory = BOUNDS[name]
    assert row["spent"]["requests"] > 0, row
    assert row["victim"]["not_ready"] == 0, row
    assert row["victim"]["unanswered"] == 0, row
    assert row["victim"]["worst"] <= worst, row
    assert row["server"]["memory_growth"] <= memory, row
