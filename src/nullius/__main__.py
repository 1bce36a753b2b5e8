"""What `nullius` and `python -m nullius` start: loads the command line, and takes Ctrl-C while it does."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line (`nullius.cli.main.main`)."""
    try:
        from nullius.cli.main import main as run
    except KeyboardInterrupt:  # half a second in which nothing has begun
        print("nullius: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
