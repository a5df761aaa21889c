"""The command line, `chatkeep` or `python -m chatkeep`, if its packages are installed."""

import sys


def main() -> None:
    """Run the command line, or exit with the extra to install."""
    try:
        from chatkeep.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("chatkeep"):
            raise
        sys.exit(f"The command line needs {error.name}. Install it with: pip install 'chatkeep[server]'")
    app()


if __name__ == "__main__":
    main()
