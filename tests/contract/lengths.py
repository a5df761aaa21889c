"""How long the stateful tests of the contract are on each store."""

import pytest

from conftest import STORES

short_and_long = pytest.mark.parametrize(
    ("store_url", "share"),
    [
        pytest.param(name, 4 if length == "short" else 1, id=f"{name}-{length}", marks=marks)
        for name in STORES
        for length, marks in (
            ("long", pytest.mark.apart if name in ("postgres", "mongodb") else pytest.mark.long),
            ("short", ()),
        )
    ],
    indirect=["store_url"],
)
"""Runs a test with a fourth of its examples, and with all of them: on servers in `make apart`."""
