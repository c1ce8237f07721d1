"""Which staged copies rely on a sample's name, so that none takes it away from another."""

from collections.abc import Callable
from threading import Condition, Lock

import attrs

from stor.digest import Digest


@attrs.define
class _Claim:
    """The staged copies of one sample that have come to their name, on one disk."""

    copies: int = 0
    right: bool = False
    made: bool = False
    kept: bool = False


class Claims:
    """One disk's names that are on their way to be durable.

    Two uploads, or an upload and a repair, may find each other's name in place and rely on it. It
    is taken away only when one of them has made it, none has succeeded, and the last one fails.
    Only `begin` and `fail` ever wait for the disk.
    """

    def __init__(self) -> None:
        self._claims: dict[bytes, _Claim] = {}
        #: Names that are being taken away.
        self._leaving: set[bytes] = set()
        self._lock = Lock()
        self._changed = Condition(self._lock)

    def begin(self, digest: Digest) -> None:
        """A copy is about to make the name, or to rely on it."""
        with self._lock:
            while digest.raw in self._leaving:
                self._changed.wait()
            claim = self._claims.get(digest.raw)
            if claim is None:
                claim = self._claims[digest.raw] = _Claim()
            claim.copies += 1

    def made(self, digest: Digest) -> None:
        """A copy has made the name."""
        with self._lock:
            claim = self._claims[digest.raw]
            claim.made = claim.right = True

    def replaced(self, digest: Digest) -> None:
        """A copy has taken the place of a bad one: the name was there before, and stays."""
        with self._lock:
            self._claims[digest.raw].right = True

    def right(self, digest: Digest) -> bool:
        """Whether the file that has the name is one of these copies."""
        with self._lock:
            return self._claims[digest.raw].right

    def succeed(self, digest: Digest) -> None:
        """A copy has been committed: the name stays."""
        with self._lock:
            claim = self._claims[digest.raw]
            claim.kept = True
            self._end(digest, claim)

    def fail(self, digest: Digest, unlink: Callable[[], None]) -> None:
        """A copy is given up; `unlink`, which may raise, is called when nobody needs the name."""
        with self._lock:
            claim = self._claims[digest.raw]
            self._end(digest, claim)
            if claim.copies or not claim.made or claim.kept:
                return
            self._leaving.add(digest.raw)
        try:
            unlink()
        finally:
            with self._lock:
                self._leaving.discard(digest.raw)
                self._changed.notify_all()

    def _end(self, digest: Digest, claim: _Claim) -> None:
        claim.copies -= 1
        if not claim.copies:
            del self._claims[digest.raw]
