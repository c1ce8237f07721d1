"""Workers without threads."""

from collections import deque

from twisted.internet.defer import Deferred, execute


class InlineWorker:
    """Does the work at once."""

    def run(self, function, *args):
        return execute(function, *args)

    def stop(self):
        """Nothing to end."""


class HeldWorker:
    """Keeps every job until the test releases it."""

    def __init__(self):
        self.held = deque()

    def run(self, function, *args):
        waiter = Deferred()
        self.held.append((waiter, function, args))
        return waiter

    def release(self, jobs=None):
        """Do the oldest `jobs`; by default all there are, and those that they bring about."""
        while self.held and jobs != 0:
            waiter, function, args = self.held.popleft()
            execute(function, *args).chainDeferred(waiter)
            if jobs is not None:
                jobs -= 1

    def stop(self):
        """Nothing to end."""
