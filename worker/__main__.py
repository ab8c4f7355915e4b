"""`python -m worker`: one worker on one device, until SIGTERM."""

import sys

from worker.tether import end_with_parent

if __name__ == "__main__":
    if "--tethered" in sys.argv[1:]:
        end_with_parent()  # before torch is imported: the parent may vanish in these seconds, too
    from worker.app import main

    sys.exit(main())
