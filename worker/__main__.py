"""`python -m worker`: one worker on one device, until SIGTERM."""

import sys

from worker.lasting import coming_to_stay, leave_it_to_the_system
from worker.tether import end_with_parent

if __name__ == "__main__":
    if "--tethered" in sys.argv[1:]:
        end_with_parent()  # before torch is imported: the parent may vanish in these seconds, too
    with coming_to_stay():
        from worker.app import main

    code = main()
    leave_it_to_the_system()
    sys.exit(code)
