"""``python -m tenggat``: the program itself."""

import os
import sys

from ._program import TenggatError, find_program


def main() -> None:
    try:
        program = find_program()
    except TenggatError as error:
        sys.exit(f"error: {error}")
    # The process becomes the program, so that signals and the exit code are its own.
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
