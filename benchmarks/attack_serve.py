"""`chatkeep serve` with keys of an issuer that grow old within seconds: `PYTHON attack_serve.py serve …`.

A token's key is fetched again when it is five minutes old. An attack that has to wait for that would take longer than
all others together. It runs in the environment of the server that is attacked.
"""

import importlib
import importlib.util

SECONDS = 3.0
MODULES = ("chatkeep.api.jwks", "chatkeep.api.issuer")


def shorten() -> None:
    """Let keys grow old, and fetches be repeated, after a few seconds."""
    found = [importlib.import_module(name) for name in MODULES if importlib.util.find_spec(name)]
    for module in found:
        assert module.LIFETIME_SECONDS > SECONDS
        assert module.COOLDOWN_SECONDS > SECONDS
        module.LIFETIME_SECONDS = module.COOLDOWN_SECONDS = SECONDS  # type: ignore[attr-defined]
    if not found:
        raise RuntimeError(f"none of {', '.join(MODULES)} exists: where are the keys of an issuer kept?")


shorten()  # in the processes that the server starts, too: they read this file again

if __name__ == "__main__":
    from chatkeep.__main__ import main

    main()
