"""When Python looks for garbage that reference counts do not find."""

import gc

#: How many more new objects than were given back; Python's own 700 are those of a request or
#: two, nearly all of which are still in use then.
NEW_OBJECTS = 2_000


def settle_down() -> None:
    """What is there by now lives as long as the process: it is never looked at again.

    What comes later is looked at less often. Both are done at the expense of requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
