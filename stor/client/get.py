"""Many samples out of a Stor into a directory: verified, written aside and renamed."""

import errno
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress

from stor.client.api import CONNECTIONS, Client, GivenUp, NotStored, Refused, mismatch
from stor.client.files import Hashed, hash_file, reason
from stor.client.many import Feed, Outcome, Report, side_by_side
from stor.client.memory import MemoryClient
from stor.digest import Digest, MalformedDigest
from stor.threads import Pool

#: With these no other file fares better.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

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
        self._target = target
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
        await self._pool.run(self._add, data, last)

    async def discard(self) -> None:
        """Leave nothing of what is not whole."""
        await self._pool.finish(self._discard)

    def _begin_anew(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size, self._hasher = 0, hashlib.sha256()

    def _add(self, data: bytes, last: bool) -> None:
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
            os.rename(self._aside, self._target)
            self._is_aside = False

    def _discard(self) -> None:
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

    async def run(self, names: Iterable[str]) -> None:
        """Fetch all of `names`. Raises `GivenUp`, `Stopped`."""
        feed = Feed(names, self._naming)

        async def fetch_on() -> None:
            while not self._stopped and (name := await feed.next()) is not None:
                await self._fetch(name)

        await side_by_side(self._connections, fetch_on, self.stop)

    def stop(self) -> None:
        """Fetch no more."""
        self._stopped = True
        self._client.stop()

    async def _fetch(self, name: str) -> None:
        sha = sha_of(name)
        try:
            digest = Digest.parse(sha)
        except MalformedDigest as error:
            self._report(Outcome("failed", sha, None, error=str(error)))
            return
        target = os.path.join(self._directory, self._template.path(digest))
        there = await self._writing.run(_present, target, digest)
        if there is not None:
            self._report(Outcome("present", str(digest), target, there.size))
            return
        landing = Landing(target, digest, self._writing)
        try:
            await self._client.receive(digest, landing)
        except (NotStored, Refused) as error:
            self._report(Outcome("failed", str(digest), target, error=str(error)))
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise GivenUp(f"{self._directory}: {reason(error)}") from None
            self._report(Outcome("failed", str(digest), target, error=reason(error)))
        else:
            self._report(Outcome("fetched", str(digest), target, landing.size))
        finally:
            await landing.discard()


def sha_of(line: str) -> str:
    """The sha at the beginning of a line, which may be one of `sha256sum`."""
    return re.split(r"\s", line.removeprefix("\\").lstrip(), maxsplit=1)[0]


def _present(target: str, digest: Digest) -> Hashed | None:
    """What is there already, if it is right."""
    try:
        if not stat.S_ISREG(os.lstat(target).st_mode):
            return None
    except OSError:
        return None
    found = hash_file(target)
    return found if isinstance(found, Hashed) and found.digest == digest else None
