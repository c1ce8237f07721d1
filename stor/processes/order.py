"""What the supervisor has its workers do."""

from collections.abc import Mapping, Sequence

import attrs

from stor.config import Config
from stor.digest import Digest
from stor.mirror.health import Picture
from stor.processes.listening import Listener


@attrs.frozen
class Storages:
    """How the storages are, as the supervisor sees them: each disk, and what is wrong with S3."""

    disks: Mapping[str, Picture]
    s3_fault: str | None


@attrs.frozen
class Order:
    """All that a worker needs to serve. `bad` are the copies that are known to be: root, sample.

    The descriptors of `listeners` come with it. `subjects` are the places on the board.
    """

    config: Config
    listeners: Sequence[Listener]
    storages: Storages
    bad: Sequence[tuple[str, Digest]]
    subjects: Mapping[str, int]
