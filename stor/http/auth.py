"""Who may do what, who is in an htpasswd file, and how quickly passwords can be guessed."""

import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address, ip_network

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from stor.errors import Unauthorized, Unavailable
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


#: How many bodies are taken at once.
MAX_UPLOADS = 1000

#: This many wrong passwords of one address are answered at once: people mistype.
FREE_FAILURES = 3

#: The next one is answered this late, and each further one twice as late as the one before it.
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 2.0

#: An address begins anew this long after its last wrong password.
FORGOTTEN_SECONDS = 600.0

#: This many passwords of one address wait to be checked at most; for one more it is 503.
WAITING_CHECKS = 16

#: The addresses whose failures are remembered at most, and the users who were right.
ADDRESSES = 10_000
REMEMBERED = 10_000


class Attempts:
    """The passwords that come from each address: one is checked at a time, wrong ones take longer.

    So guesses hold up nobody but those who share their address, and only those of them whose
    password was not right there before.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._turns: dict[str, DeferredLock] = {}
        #: How often each address was wrong, and when last; the latest at the end.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def remembered(self) -> int:
        """The addresses that something is known of."""
        return len(self._failures.keys() | self._turns.keys())

    async def make(self, address: str, check: Callable[[], Awaitable[bool]]) -> bool:
        """What `check` says, in its turn; `False` later the more often that was so.

        Raises `Unavailable` when too many of that address wait, or what `check` raises.
        """
        turn = self._turns.setdefault(address, DeferredLock())
        if len(turn.waiting) >= WAITING_CHECKS:
            reason = "too many passwords of your address wait to be checked"
            raise Unavailable(reason, int(LONGEST_DELAY_SECONDS))
        await turn.acquire()
        try:
            right = await check()
            delay = 0 if right else self._failed(address)
            if delay:
                await deferLater(self._clock, delay)
            return right
        finally:
            turn.release()
            if not turn.locked and self._turns.get(address) is turn:
                del self._turns[address]

    def _failed(self, address: str) -> float:
        """Note that a password was wrong; how late that is said."""
        now = self._clock.seconds()
        failures, last = self._failures.pop(address, (0, now))
        failures = failures + 1 if now - last < FORGOTTEN_SECONDS else 1
        self._failures[address] = failures, now
        if len(self._failures) > ADDRESSES:
            self._failures.popitem(last=False)
        delays = min(failures - FREE_FAILURES, 30)
        return (
            0
            if delays <= 0
            else min(FIRST_DELAY_SECONDS * 2 ** (delays - 1), LONGEST_DELAY_SECONDS)
        )


class Authenticator:
    """Basic credentials (RFC 7617): those of the configuration, and the users of a file."""

    def __init__(
        self, known: Iterable[str], attempts: Attempts, accounts: Accounts | None = None
    ) -> None:
        """`known` are `user:password`."""
        # What is kept, also of passwords that were verified, is worth nothing without this.
        self._key = secrets.token_bytes(32)
        self._known = [self._seal(credentials.encode()) for credentials in known]
        self._attempts = attempts
        self._accounts = accounts
        self._checks: Shared[tuple[str, bytes], bool] = Shared()
        #: Who was right where; guesses from there do not hold them up.
        self._passed: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def check(
        self,
        authorization: bytes | None,
        address: str,
        tried: Callable[[bytes], None] = lambda user: None,
    ) -> None:
        """Let the value of an `Authorization` header from an address pass.

        `tried` is told as whom, before it is known whether that is right. Raises `Unauthorized`,
        `Unavailable`, `Busy`.
        """
        if authorization is None:
            raise Unauthorized("unauthorized: a user and a password are needed (Basic)")
        user, password = _credentials(authorization)
        tried(user)
        seal, address = self._seal(user + b":" + password), _network(address)
        one = address, seal
        if one in self._passed and await self._remember(user, seal):
            self._passed.move_to_end(one)
            return

        def begin() -> Deferred[bool]:
            checking = partial(self._is_right, user, password, seal)
            return Deferred.fromCoroutine(self._attempts.make(address, checking))

        # Many requests of one client are one attempt.
        if not await self._checks.run(one, begin):
            raise Unauthorized("unauthorized: wrong user or password")
        self._passed[one] = None
        if len(self._passed) > REMEMBERED:
            self._passed.popitem(last=False)

    def recall(self, authorization: bytes, address: str) -> bytes | None:
        """The user whose credentials of the configuration were right from this address before.

        `None`: `check` has to find out. It never waits.
        """
        try:
            user, password = _credentials(authorization)
        except Unauthorized:
            return None
        seal = self._seal(user + b":" + password)
        one = _network(address), seal
        if one not in self._passed or not self._is_configured(seal):
            return None
        self._passed.move_to_end(one)
        return user

    async def _remember(self, user: bytes, seal: bytes) -> bool:
        """Whether these credentials are known to be right without hashing them."""
        if self._is_configured(seal):
            return True
        return self._accounts is not None and await self._accounts.remember(user, seal)

    async def _is_right(self, user: bytes, password: bytes, seal: bytes) -> bool:
        if self._is_configured(seal):
            return True
        return self._accounts is not None and await self._accounts.know(user, password, seal)

    def _is_configured(self, seal: bytes) -> bool:
        # All are compared, each in a time that says nothing of how much is right.
        return sum(hmac.compare_digest(seal, one) for one in self._known) > 0

    def _seal(self, credentials: bytes) -> bytes:
        return hmac.digest(self._key, credentials, "sha256")


def _credentials(authorization: bytes) -> tuple[bytes, bytes]:
    """User and password. Raises `Unauthorized` when the header has none."""
    scheme, _, encoded = authorization.partition(b" ")
    try:
        given = binascii.a2b_base64(encoded.strip(), strict_mode=True)
    except binascii.Error:
        given = b""
    user, colon, password = given.partition(b":")
    if scheme.lower() != b"basic" or not colon:
        raise Unauthorized("unauthorized: wrong user or password")
    return user, password


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """What one client has to itself: an IPv4 address, or 64 bits of IPv6 (RFC 6177)."""
    try:
        found = ip_address(address)
    except ValueError:  # a Unix socket's
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    # A socket of both kinds has IPv4 in this form (RFC 4291, 2.5.5.2).
    return str(found.ipv4_mapped or ip_network((int(found), 64), strict=False))


@attrs.frozen
class Rules:
    """Who may ask for what, and how much may be stored.

    `read_auth`: samples are for those alone who may store them. `public_listing`: everybody may
    list the samples, which tells strangers what there is. `status_auth`: the pages are for users
    alone, and what names a disk with them.
    """

    authenticator: Authenticator
    max_upload_bytes: int | None = None
    max_uploads: int = MAX_UPLOADS
    read_auth: bool = False
    public_listing: bool = False
    status_auth: bool = False
