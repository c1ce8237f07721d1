"""The reactor of this process. Its clock is monotonic: a step of the wall clock changes nothing.

Twisted's own reads the wall clock, and everything that asks a reactor for the time, such as its
delayed calls, would fire hours early or late after a step (clock_gettime(2)).
"""

import time
from typing import Any

#: IReactorCore, IReactorTime and IReactorFromThreads at once, which no type says.
Reactor = Any


def own_reactor() -> Reactor:
    """The reactor, before anything is scheduled on it. Importing it installs it."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing installs it

    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    return reactor
