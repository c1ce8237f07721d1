"""Disks that fail by chance, in an order that a seed decides."""

import errno
import random

from tests.conformance import QuickFiles

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENOENT")
CALLS_A_FAULT = 256


class Chance:
    """Which calls fail: one of 256 while it is `on`. `hits` are those that did."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self.on = False
        self.hits = []

    def draw(self, label, name):
        """An error's name, "short write", or `None` for a call that is to succeed."""
        if not self.on or self._rng.randrange(CALLS_A_FAULT):
            return None
        fault = self._rng.choice((*ERRORS, "short write") if name == "write" else ERRORS)
        self.hits.append((label, name, fault))
        return fault


class Unreliable(QuickFiles):
    """The system calls of a disk that fails by chance.

    One that is not `modern` has neither O_TMPFILE nor RENAME_EXCHANGE, as through FUSE.
    """

    def __init__(self, chance, modern, label, log):
        super().__init__(label, log)
        self._chance = chance
        if not modern:
            self.fail_always("open_nameless", errno.EOPNOTSUPP)
            self.fail_always("exchange", errno.EINVAL)

    def _before(self, name, args):
        fault = self._chance.draw(self.label, name)
        if fault == "short write":
            fd, data = args
            return fd, data[: max(1, len(data) // 2)]
        if fault is not None:
            self._raise(name, args, getattr(errno, fault))
        return super()._before(name, args)
