"""Very many samples on a disk."""

import os
from pathlib import Path

from stor.digest import Digest

#: Samples in each innermost directory, as on a disk of 130 million.
_PER_DIRECTORY = 8

#: Fewer than ext4 lets a file have names.
_NAMES_PER_FILE = 60_000


class Crowd:
    """A number of samples, in directories as full as on a disk with very many of them.

    They are names of a few files, with contents that are not theirs: good for not being asked for.
    """

    def __init__(self, samples: int) -> None:
        self._directories = max(1, samples // _PER_DIRECTORY)
        if self._directories > 2**16:
            raise ValueError(f"{samples} samples: expected at most {2**16 * _PER_DIRECTORY}")

    def fill(self, root: Path) -> None:
        """Put them below a storage root that holds none."""
        names = 0
        source = root / "source"
        root.mkdir(parents=True)
        for number in range(self._directories):
            directory = root / self._digest(number).directories[-1]
            directory.mkdir(parents=True)
            for _ in range(_PER_DIRECTORY):
                if names % _NAMES_PER_FILE == 0:
                    source.unlink(missing_ok=True)
                    source.write_bytes(b"sample")
                os.link(source, root / self._digest(number).disk_path)
                names += 1
        source.unlink()

    def stranger(self) -> Digest:
        """The digest of a sample that is not among them, though it would be in their midst."""
        return self._digest(int.from_bytes(os.urandom(4)) % self._directories)

    def _digest(self, number: int) -> Digest:
        return Digest(b"\0" + number.to_bytes(2) + os.urandom(29))
