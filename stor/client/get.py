"""Many samples out of a Stor into a directory: verified, written aside and renamed."""

import errno
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from stor.client.api import (
    CONNECTIONS,
    Client,
    ContentMismatch,
    GivenUp,
    NotStored,
    Refused,
    mismatch,
)
from stor.client.files import Hashed, Problem, hash_file, reason
from stor.client.many import Feed, Outcome, Report, side_by_side
from stor.client.memory import MemoryClient
from stor.client.tar import BadTar, TarReader
from stor.digest import Digest, MalformedDigest
from stor.threads import Pool

#: With these no other file fares better.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

#: How many samples are asked for in one answer, and how many bytes that may be.
TOGETHER = 256
TOGETHER_BYTES = 4 * 1024**2

#: A line of what is missing has a word and a sha.
_LINE_BYTES = 80

_NOT_FOUND = "404: not found: no storage holds this sample"

_numbers = itertools.count()


class BadTemplate(ValueError):
    """A template that names no file; the text says why."""


class Template:
    """Where a sample goes below a directory: `SHA`, `aa/bb/SHA`, `aa/bb/cc/SHA.dat`."""

    def __init__(self, text: str = "SHA") -> None:
        """Raises `BadTemplate`."""
        parts = text.split("/")
        if "SHA" not in parts[-1]:
            raise BadTemplate(f"--name: expected SHA in the name of the file, found {text!r}")
        if any(part in ("", ".", "..") for part in parts):
            raise BadTemplate(f"--name: expected a path below the directory, found {text!r}")
        self._parts = parts

    def path(self, digest: Digest) -> str:
        """Where this one goes."""
        name = str(digest)
        pairs = {"aa": name[:2], "bb": name[2:4], "cc": name[4:6]}
        return "/".join(pairs.get(part) or part.replace("SHA", name) for part in self._parts)


class Landing:
    """A `Sink`: a file that has its name once it is whole and verified, and else is not there."""

    def __init__(self, target: str, digest: Digest, pool: Pool) -> None:
        self.size = 0
        self.target = target
        self._digest = digest
        self._pool = pool
        directory, name = os.path.split(target)
        self._directory = directory
        # Beside the target, or the last step would not be one.
        self._aside = os.path.join(directory, f".{name[:64]}.{os.getpid()}-{next(_numbers)}.part")
        self._fd = -1
        self._is_aside = False
        self._hasher = hashlib.sha256()

    @property
    def received_bytes(self) -> int:
        """See `Sink`."""
        return self.size

    async def begin(self) -> None:
        """See `Sink`."""
        if self.size:
            await self._pool.run(self._begin_anew)

    async def add(self, data: bytes, *, last: bool) -> None:
        """See `Sink`. Raises `OSError`."""
        await self._pool.run(self.write, data, last)

    def begin_anew(self) -> None:
        """See `Sink.begin`. Blocking, as all below."""
        if self.size:
            self._begin_anew()

    def _begin_anew(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size, self._hasher = 0, hashlib.sha256()

    def write(self, data: bytes, last: bool) -> None:
        """See `Sink.add`. Raises `ContentMismatch`, `OSError`."""
        if self._fd < 0:
            os.makedirs(self._directory or ".", exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._aside, flags, 0o666)
            self._is_aside = True
        self._hasher.update(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self.size += len(data)
        if last:
            if self._hasher.digest() != self._digest.raw:
                raise mismatch(self._digest)
            # Some file systems say only now that there was no room (close(2)).
            fd, self._fd = self._fd, -1
            os.close(fd)
            os.rename(self._aside, self.target)
            self._is_aside = False

    def discard(self) -> None:
        """Leave nothing of what is not whole."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)
        if self._is_aside:
            with suppress(FileNotFoundError):
                os.unlink(self._aside)


class Get:
    """Fetches samples. Memory does not grow with their number or size."""

    def __init__(
        self,
        client: Client | MemoryClient,
        writing: Pool,
        naming: Pool,
        report: Report,
        directory: str,
        template: Template,
        *,
        connections: int = CONNECTIONS,
    ) -> None:
        """`naming` is where the list is read, which may wait for who writes it."""
        self._client = client
        self._writing = writing
        self._naming = naming
        self._report = report
        self._directory = directory
        self._template = template
        self._connections = connections
        self._stopped = False
        self._mean_bytes = TOGETHER_BYTES / 4

    async def run(self, names: Iterable[str]) -> None:
        """Fetch all of `names`. Raises `GivenUp`, `Stopped`."""
        feed = Feed(names, self._naming)

        async def fetch_on() -> None:
            while not self._stopped and (names := await feed.several(self._at_once)):
                await self._fetch(names)

        await side_by_side(self._connections, fetch_on, self.stop)

    def stop(self) -> None:
        """Fetch no more."""
        self._stopped = True
        self._client.stop()

    async def _fetch(self, names: list[str]) -> None:
        """Fetch some, in one answer if the server can do that."""
        landings: dict[Digest, Landing] = {}
        again: list[Digest] = []
        for name in names:
            try:
                digest = Digest.parse(sha_of(name))
            except MalformedDigest as error:
                self._report(Outcome("failed", sha_of(name), None, error=str(error)))
                continue
            if digest in landings:
                again.append(digest)
            target = os.path.join(self._directory, self._template.path(digest))
            landings[digest] = Landing(target, digest, self._writing)
        try:
            await self._pass_over_present(landings)
            if len(landings) > 1:
                await self._fetch_together(landings)
            while landings and not self._stopped:
                digest = next(iter(landings))
                await self._fetch_one(digest, landings.pop(digest))
        finally:
            await self._writing.finish(_discard_all, list(landings.values()))
        # What was asked for more than once is there by now, or was failed.
        if again and not self._stopped:
            await self._fetch(list(map(str, again)))

    async def _pass_over_present(self, landings: dict[Digest, Landing]) -> None:
        for digest, there in (await self._writing.run(_present, dict(landings))).items():
            landing = landings.pop(digest)
            self._report(Outcome("present", str(digest), landing.target, there.size))

    async def _fetch_together(self, landings: dict[Digest, Landing]) -> None:
        """Fetch many in one answer; those that are left in `landings` have not come."""
        unpacking = Unpacking(landings, self._writing)
        try:
            await self._client.batch(list(landings), unpacking)
        except OSError as error:
            raise self._given_up(error) from None
        except ValueError:
            pass  # no TAR of samples: what has not come of it is fetched by itself
        finally:
            for digest, outcome in unpacking.ended.items():
                self._end(digest, landings.pop(digest), outcome)

    async def _fetch_one(self, digest: Digest, landing: Landing) -> None:
        error: Exception | None = None
        try:
            await self._client.receive(digest, landing)
        except (NotStored, Refused) as refused:
            error = refused
        except OSError as failed:
            if failed.errno in OF_THE_DISK:
                raise self._given_up(failed) from None
            error = failed
        finally:
            await self._writing.finish(landing.discard)
        self._end(digest, landing, error)

    def _end(self, digest: Digest, landing: Landing, error: Exception | None) -> None:
        if error is None:
            self._report(Outcome("fetched", str(digest), landing.target, landing.size))
            # The larger they are, the fewer in one answer.
            self._mean_bytes += (landing.size - self._mean_bytes) / 16
        else:
            self._report(failure(digest, landing.target, error))

    def _given_up(self, error: OSError) -> GivenUp:
        return GivenUp(f"{self._directory}: {reason(error)}")

    @property
    def _at_once(self) -> int:
        """How many are asked for in one answer."""
        return max(1, min(TOGETHER, int(TOGETHER_BYTES / (self._mean_bytes + 1))))


class Unpacked(Protocol):
    """Where one sample of a TAR goes: a `Landing`, say. Blocking."""

    def write(self, data: bytes, last: bool) -> None:
        """Take the next bytes. Raises `ContentMismatch`, `OSError`."""

    def begin_anew(self) -> None:
        """Forget what has come."""

    def discard(self) -> None:
        """Keep nothing of it."""


class Unpacking:
    """A `Sink` for a TAR of samples, each of which lands."""

    #: It is never resumed: what has not come is fetched by itself.
    received_bytes = 0

    def __init__(self, landings: Mapping[Digest, Unpacked], pool: Pool) -> None:
        self._landings = dict(landings)
        self._pool = pool
        self._reader = TarReader(self._take)
        self._missing = b""
        #: Those that are over: `None`, or what became of them.
        self.ended: dict[Digest, Exception | None] = {}

    async def begin(self) -> None:
        """See `Sink`."""

    async def add(self, data: bytes, *, last: bool) -> None:
        """See `Sink`. Raises `BadTar`, and `OSError` where no other file fares better."""
        await self._pool.run(self._reader.feed, data)

    def _take(self, name: str, data: bytes, last: bool) -> None:
        if name == "missing.txt":
            self._missing += data
            if len(self._missing) > _LINE_BYTES * (len(self._landings) + 1):
                raise BadTar("its list of what is missing is too long")
            if last:
                self._know_missing()
            return
        digest = Digest.parse(name)
        if digest in self.ended or digest not in self._landings:
            return
        landing = self._landings[digest]
        try:
            landing.write(data, last)
        except ContentMismatch:
            landing.begin_anew()
            del self._landings[digest]
        except OSError as error:
            if error.errno in OF_THE_DISK:
                raise
            landing.discard()
            self.ended[digest] = error
        else:
            if last:
                self.ended[digest] = None

    def _know_missing(self) -> None:
        for line in self._missing.decode("ascii", "replace").splitlines():
            word, _, sha = line.partition(" ")
            if word != "missing":
                continue
            digest = Digest.parse(sha)
            if digest in self._landings:
                self.ended.setdefault(digest, NotStored(_NOT_FOUND))


def failure(digest: Digest, path: str | None, error: Exception) -> Outcome:
    """What is told of a sample that could not be had."""
    why = reason(error) if isinstance(error, OSError) else str(error)
    gone = True if isinstance(error, NotStored) else None
    return Outcome("failed", str(digest), path, error=why, not_stored=gone)


def _discard_all(landings: list[Landing]) -> None:
    for landing in landings:
        landing.discard()


def sha_of(line: str) -> str:
    """The sha at the beginning of a line, which may be one of `sha256sum`."""
    return re.split(r"\s", line.removeprefix("\\").lstrip(), maxsplit=1)[0]


def _present(landings: dict[Digest, Landing]) -> dict[Digest, Hashed]:
    """What is there already and right."""
    found = {digest: _found(landing.target) for digest, landing in landings.items()}
    return {
        digest: hashed
        for digest, hashed in found.items()
        if isinstance(hashed, Hashed) and hashed.digest == digest
    }


def _found(target: str) -> Hashed | Problem | None:
    try:
        if not stat.S_ISREG(os.lstat(target).st_mode):
            return None
    except OSError:
        return None
    return hash_file(target)
