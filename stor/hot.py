"""Small samples that were asked for lately, in memory."""

from collections import OrderedDict
from typing import Any

import attrs

from stor.digest import Digest

#: What an entry takes beside its content.
_OVERHEAD_BYTES = 1000


@attrs.define(eq=False)
class HotSample:
    """A whole sample whose bytes are known to be right; `place` is where they came from.

    `storage` is the storage that this is on; `answer` is its consumer's to keep.
    """

    digest: Digest
    content: bytes | bytearray
    modified_ns: int
    place: str
    storage: str
    answer: Any = None


class HotContent:
    """A hot sample as a `stor.content.Content`: all of it is `whole`."""

    def __init__(self, sample: HotSample) -> None:
        self.digest = sample.digest
        self.place = sample.place
        self.storage = sample.storage
        self.size = len(sample.content)
        self.modified_ns = sample.modified_ns
        self.whole: bytes | None = bytes(sample.content)

    def take_part(self, end: int) -> None:
        """See `Content.take_part`."""

    async def read(self, offset: int, length: int) -> bytes:
        """See `Content.read`."""
        return (self.whole or b"")[offset : offset + length]

    def close(self) -> None:
        """See `Content.close`."""


class HotSamples:
    """A bounded number of bytes of verified samples; those asked for longest ago go first.

    What has a sample's SHA-256 can never change, so nothing here is ever out of date.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._samples: OrderedDict[bytes, HotSample] = OrderedDict()

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, raw: object) -> bool:
        return raw in self._samples

    def get(self, raw: bytes, *, missed: bool = True) -> HotSample | None:
        """The sample with this digest (`Digest.raw`), if it is here; `missed` counts if not."""
        sample = self._samples.get(raw)
        if sample is None:
            self.misses += missed
            return None
        self.hits += 1
        self._samples.move_to_end(raw)
        return sample

    def add(self, sample: HotSample) -> None:
        """Keep a sample that has been verified, in the place of others if need be."""
        raw, taken = sample.digest.raw, len(sample.content) + _OVERHEAD_BYTES
        if taken > self.limit_bytes or raw in self._samples:
            return
        self._samples[raw] = sample
        self.used_bytes += taken
        self.shrink(self.limit_bytes)

    def shrink(self, limit_bytes: int) -> None:
        """Keep no more than this from now on."""
        self.limit_bytes = limit_bytes
        while self.used_bytes > limit_bytes:
            _, sample = self._samples.popitem(last=False)
            self.used_bytes -= len(sample.content) + _OVERHEAD_BYTES
