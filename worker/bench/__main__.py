"""`python -m worker.bench`: measure this machine; `--help` says what."""

import sys

if __name__ == "__main__":
    from worker.bench.command import main

    sys.exit(main())
