"""The command `elision`: `elision run -- python train.py`, `elision doctor`, …"""

import os
import sys


def main() -> None:
    command = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "elision")
    try:
        # The command becomes this process: process id, signals and exit status are its own.
        os.execv(command, ["elision", *sys.argv[1:]])
    except OSError as error:
        print(f"elision: this package was built without the command ({error}); see bindings/python/build", file=sys.stderr)
        sys.exit(125)


if __name__ == "__main__":
    main()
