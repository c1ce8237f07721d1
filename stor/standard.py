"""The descriptors 0, 1 and 2, which a process may be started without."""

import os
import sys


def hold_standard() -> None:
    """Have the descriptors 0, 1 and 2, before anything else gets these numbers.

    What is printed would else be written to a disk's file or to a client.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free (open(2)), also in processes that are started.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for good
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - for good
