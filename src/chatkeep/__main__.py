"""`chatkeep`, and `python -m chatkeep`: the command line, or how to get it."""

import sys


def main() -> None:
    """Run the command line; say what is missing where chatkeep was installed without it."""
    try:
        from chatkeep.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("chatkeep"):
            raise
        sys.exit(f"The command line needs {error.name}. Install it with: pip install 'chatkeep[server]'")
    app()


if __name__ == "__main__":
    main()
