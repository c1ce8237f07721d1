"""Turns among several Stors that a test has in one process."""

from collections import Counter

from twisted.internet.defer import Deferred

from stor.threads import settle


class SharedTurns:
    """Who has the turn with which sample. `of(name)` are the turns of one process."""

    def __init__(self):
        self.holders = {}
        self.held = Counter()
        self.changes = Counter()
        self.waiting = []

    def of(self, process):
        return _Turns(self, process)

    def wake(self):
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.callback(None)


class _Turns:
    """Implements `stor.turns.Turns`."""

    def __init__(self, shared, process):
        self._shared = shared
        self._process = process

    async def take(self, digest):
        shared = self._shared
        while shared.holders.setdefault(digest, self._process) != self._process:
            waiter = Deferred()
            shared.waiting.append(waiter)
            await waiter
        shared.held[digest] += 1

    def give_back(self, digest):
        shared = self._shared
        shared.held[digest] -= 1
        if not shared.held[digest]:
            del shared.holders[digest]
            shared.wake()

    def end(self, digest, changes):
        def over(_):
            self._shared.changes[digest, self._process] += 1
            self.give_back(digest)

        ends = [Deferred.fromCoroutine(change.over()) for change in changes]
        Deferred.fromCoroutine(settle(ends)).addCallback(over)

    def seen(self, digest):
        return sum(
            number
            for (changed, process), number in self._shared.changes.items()
            if changed == digest and process != self._process
        )
