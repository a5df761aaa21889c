"""What is said of a package that is not installed."""


def missing(error: ModuleNotFoundError, what: str, extra: str) -> ModuleNotFoundError:
    """Return the error to raise instead, which names the extra that brings the package."""
    reason = f"{what} needs {error.name}, a part of the extra `{extra}`: pip install 'chatkeep[{extra}]'"
    return ModuleNotFoundError(reason, name=error.name)
