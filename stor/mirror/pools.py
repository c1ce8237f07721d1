"""A disk's own threads: a hung disk takes these and no others."""

import attrs

from stor.mirror.group_commit import Commits
from stor.threads import Pool


@attrs.frozen
class DiskPools:
    """A disk's own threads: a hung disk takes these and no others."""

    readers: Pool
    writers: Pool
    prober: Pool
    commits: Commits

    def stop(self) -> None:
        """Let the threads end once they are idle."""
        for worker in (self.readers, self.writers, self.prober, self.commits):
            worker.stop()
