"""The command line, `chatkeep` or `python -m chatkeep`, if its packages are installed."""

import sys

INTERRUPTED = 130
"""The exit code after Ctrl-C, as in `chatkeep.cli.terminal`, which may not have been imported yet."""


def main() -> None:
    """Run the command line, or exit with the extra to install."""
    try:
        _run()
    except KeyboardInterrupt:  # during the imports; from then on commands catch it
        sys.stderr.write("Error: stopped\n")
        sys.exit(INTERRUPTED)


def _run() -> None:
    try:
        from chatkeep.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("chatkeep"):
            raise
        sys.exit(f"The command line needs {error.name}. Install it with: pip install 'chatkeep[server]'")
    app()


if __name__ == "__main__":
    main()
