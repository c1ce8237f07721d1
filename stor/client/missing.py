"""A filter: of a list of samples, those that are not stored."""

from collections.abc import Callable, Iterable

from stor.client.api import ASKED, MISSING, UNKNOWN, Client
from stor.client.get import sha_of
from stor.client.many import Feed
from stor.client.memory import MemoryClient
from stor.digest import Digest, MalformedDigest
from stor.threads import Pool

#: What is said of a line: `missing`, `unknown` (it may be stored) or `malformed`.
Say = Callable[[str, str], None]


class Missing:
    """Asks about the shas at the beginning of lines, in order."""

    def __init__(self, client: Client | MemoryClient, naming: Pool, say: Say) -> None:
        self._client = client
        self._naming = naming
        self._say = say
        self._stopped = False

    async def run(self, lines: Iterable[str]) -> None:
        """Ask about each; of those that are stored nothing is said. Raises `ClientError`."""
        feed = Feed(lines, self._naming)
        ended = False
        while not ended and not self._stopped:
            asked: list[tuple[str, Digest | None]] = []
            while len(asked) < ASKED:
                line = await feed.next()
                if line is None:
                    ended = True
                    break
                try:
                    asked.append((line, Digest.parse(sha_of(line))))
                except MalformedDigest:
                    asked.append((line, None))
            digests = [digest for _, digest in asked if digest is not None]
            states = iter(await self._client.missing(digests) if digests else b"")
            for line, digest in asked:
                state = None if digest is None else next(states)
                if state is None:
                    self._say("malformed", line)
                elif state == MISSING[0]:
                    self._say("missing", line)
                elif state == UNKNOWN[0]:
                    self._say("unknown", line)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped = True
        self._client.stop()
