"""The reactor of this process. Its clock is monotonic: a step of the wall clock changes nothing.

Twisted's own reads the wall clock, and everything that asks a reactor for the time, such as its
delayed calls, would fire hours early or late after a step (clock_gettime(2)).
"""

import time
from functools import partial
from typing import Any

from twisted.logger import Logger

#: IReactorCore, IReactorTime and IReactorFromThreads at once, which no type says.
Reactor = Any

_log = Logger()


def own_reactor() -> Reactor:
    """The reactor, before anything is scheduled on it. Importing it installs it."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing installs it

    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    without_contexts(reactor)
    return reactor


def without_contexts(reactor: Reactor) -> None:
    """Have events handled without a context for each, if the reactor is the one of epoll(7).

    Twisted makes one in a dozen calls, for logs of an old kind that nobody here writes.
    """
    from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415 - commands start without

    if isinstance(reactor, EPollReactor):
        reactor.doIteration = partial(_poll, reactor)  # type: ignore[method-assign]


def _poll(reactor: Any, timeout: float | None) -> None:
    """See `EPollReactor.doPoll`."""
    selectables, handle = reactor._selectables, reactor._doReadOrWrite
    try:
        events = reactor._poller.poll(-1 if timeout is None else timeout, len(selectables))
    except InterruptedError:
        return
    for fd, event in events:
        # One that was handled before may have closed it.
        selectable = selectables.get(fd)
        if selectable is not None:
            try:
                handle(selectable, fd, event)
            except Exception:
                _log.failure("A connection's end")
