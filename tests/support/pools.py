"""Thread pools that a test controls."""

from collections import deque
from functools import partial
from queue import SimpleQueue
from threading import Thread, local

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure


class InlinePool:
    """Does the work at once."""

    def run(self, function, *args):
        return execute(function, *args)

    def finish(self, function, *args):
        return execute(function, *args)

    def stop(self):
        """Nothing to end."""


class InlineOutcomes:
    """Tells at once."""

    def put(self, tell, outcome, *, last=False):
        tell(outcome)


class HeldPool:
    """Keeps every job until the test releases it."""

    def __init__(self):
        self.held = deque()

    def run(self, function, *args):
        waiter = Deferred()
        self.held.append((waiter, function, args))
        return waiter

    finish = run

    def release(self, jobs=None):
        """Do the oldest `jobs`; by default all there are, and those that they bring about."""
        while self.held and jobs != 0:
            waiter, function, args = self.held.popleft()
            execute(function, *args).chainDeferred(waiter)
            if jobs is not None:
                jobs -= 1

    def stop(self):
        """Nothing to end."""


class _Threads:
    """Threads that wait for the next job when one is done."""

    def __init__(self):
        self._jobs = SimpleQueue()
        self._resting = 0

    def __del__(self):
        for _ in range(self._resting):
            self._jobs.put(None)

    def begin(self, job):
        """Have `job` called, in a thread that rests if there is one."""
        if self._resting:
            self._resting -= 1
        else:
            Thread(target=self._work, args=(self._jobs,), daemon=True).start()
        self._jobs.put(job)

    def ended(self):
        """A job is done: its thread rests."""
        self._resting += 1

    @staticmethod
    def _work(jobs):
        while (job := jobs.get()) is not None:
            job()
            del job


def _report(reports, function, args):
    """Call a function and report its outcome."""
    try:
        outcome = function(*args)
    except BaseException:
        outcome = Failure()
    reports.put((True, outcome))


class SteppingPool(HeldPool):
    """Keeps every job until the test releases it, and again wherever a job calls `pause`.

    Jobs run in threads, but one at a time, so that nothing happens in another order the next time.
    """

    def __init__(self):
        super().__init__()
        self._threads = _Threads()
        self._reports = SimpleQueue()
        self._own = local()

    def run(self, function, *args):
        waiter, go_on = Deferred(), SimpleQueue()
        self.held.append((waiter, go_on, partial(self._work, go_on, function, args)))
        return waiter

    finish = run

    def pause(self):
        """Go on only when the test releases the job again. Called in a job's thread."""
        self._reports.put((False, None))
        self._own.go_on.get()

    def release(self, jobs=None):
        """Let the oldest `jobs` go on; by default all there are, to their ends."""
        while self.held and jobs != 0:
            waiter, go_on, new = self.held.popleft()
            if new is None:
                go_on.put(None)
            else:
                self._threads.begin(new)
            ended, outcome = self._reports.get()
            if ended:
                self._threads.ended()
                waiter.callback(outcome)
            else:
                self.held.append((waiter, go_on, None))
            if jobs is not None:
                jobs -= 1

    def _work(self, go_on, function, args):
        self._own.go_on = go_on
        _report(self._reports, function, args)


class HangingPool:
    """Does the work at once, in a thread; a job that calls `hang` stays there until `wake`.

    One thread runs at a time, so that the order is the same every time.
    """

    _of_thread = local()

    def __init__(self):
        self._threads = _Threads()
        self._reports = SimpleQueue()
        self._hanging = deque()

    def run(self, function, *args):
        waiter = Deferred()
        self._threads.begin(partial(self._work, self._reports, function, args))
        self._take_report(waiter)
        return waiter

    finish = run

    @classmethod
    def hang(cls):
        """Go on only when the test says so. Called in a job's thread."""
        go_on = SimpleQueue()
        cls._of_thread.reports.put((False, go_on))
        go_on.get()

    def wake(self):
        """Let the jobs that hang go on, the oldest first."""
        while self._hanging:
            waiter, go_on = self._hanging.popleft()
            go_on.put(None)
            self._take_report(waiter)

    def stop(self):
        """Nothing to end."""

    @classmethod
    def _work(cls, reports, function, args):
        cls._of_thread.reports = reports
        _report(reports, function, args)

    def _take_report(self, waiter):
        ended, outcome = self._reports.get()
        if ended:
            self._threads.ended()
            waiter.callback(outcome)
        else:
            self._hanging.append((waiter, outcome))
