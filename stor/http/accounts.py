"""The users of an htpasswd file. Hashing and looking at the file are done off the reactor."""

import hashlib
from collections import OrderedDict

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.htpasswd import Htpasswd, HtpasswdError, changed, matches
from stor.threads import Pool, Shared, Unanswered, within

#: How long a verified password need not be hashed again, unless the file has another hash.
REMEMBERED_SECONDS = 3600.0

#: How many are remembered at most.
REMEMBERED = 10_000

#: How often the file is looked at, at most.
LOOK_SECONDS = 1.0

#: How long a request waits for that; then what was read before counts.
ANSWER_SECONDS = 2.0


@attrs.frozen
class _Verified:
    """A password that was right: what it was compared with, and until when that is known."""

    hashed: bytes
    until: float


class Accounts:
    """Users and passwords of a file that is read again when it changes."""

    log = Logger()

    def __init__(self, known: Htpasswd, hashing: Pool, looking: Pool, clock: IReactorTime) -> None:
        self._known = known
        self._hashing = hashing
        self._looking = looking
        self._clock = clock
        self._looked = clock.seconds()
        self._looks: Shared[None, None] = Shared()
        self._checks: Shared[tuple[bytes, bytes], bool] = Shared()
        self._complaint = ""
        #: Only what was right: no number of guesses takes the place of one.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def remember(self, user: bytes, seal: bytes) -> bool:
        """Whether the file has the user, with a password that was verified lately.

        `seal` stands for both, and is what is remembered of them.
        """
        await self._renew()
        verified = self._verified.get(seal)
        return (
            verified is not None
            and verified.until > self._clock.seconds()
            and verified.hashed == self._known.hashes.get(user)
        )

    async def know(self, user: bytes, password: bytes, seal: bytes) -> bool:
        """Whether the file has the user, with this password.

        Raises `Busy` when too many passwords wait to be hashed.
        """
        if await self.remember(user, seal):
            self._verified.move_to_end(seal)
            return True
        hashed = self._known.hashes.get(user)
        if not await self._check(password, seal, hashed or self._decoy(user)) or hashed is None:
            return False
        self._verified[seal] = _Verified(hashed, self._clock.seconds() + REMEMBERED_SECONDS)
        self._verified.move_to_end(seal)
        if len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)
        return True

    def _decoy(self, user: bytes) -> bytes:
        """What the password of a user that nobody knows is compared with, to take as long.

        Always the same for one user: hashes may differ in their cost.
        """
        hashes = list(self._known.hashes.values())
        return hashes[int.from_bytes(hashlib.sha256(user).digest()[:8]) % len(hashes)]

    def _check(self, password: bytes, seal: bytes, hashed: bytes) -> Deferred[bool]:
        """Compare in a thread, once for all who ask the same meanwhile."""
        return self._checks.run(
            (seal, hashed), lambda: self._hashing.run(matches, password, hashed)
        )

    async def _renew(self) -> None:
        """Read the file again if it is another by now."""
        now = self._clock.seconds()
        if not self._looks.under_way(None):
            if now - self._looked < LOOK_SECONDS:
                return
            self._looked = now
        patience_seconds = self._looked + ANSWER_SECONDS - now
        if patience_seconds <= 0:
            return
        try:
            await within(self._clock, patience_seconds, self._looks.run(None, self._look))
        except Unanswered:
            self._complain("it does not answer")

    def _look(self) -> Deferred[None]:
        return self._looking.run(changed, self._known).addCallbacks(self._seen, self._failed)

    def _seen(self, found: Htpasswd | None) -> None:
        self._complaint = ""
        if found is not None:
            self._known = found
            self.log.info("{path}: read again", path=found.path)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, HtpasswdError):
            self._complain("; ".join(error.faults))
        elif isinstance(error, OSError):
            self._complain(error.strerror or str(error))
        else:
            self.log.failure("Looking at {path}", failure, path=self._known.path)

    def _complain(self, reason: str) -> None:
        """Say once that the users are still those of before, and why."""
        if reason != self._complaint:
            self._complaint = reason
            line = "{path}: {reason}; the users that were read before stay"
            self.log.error(line, path=self._known.path, reason=reason)
