"""A host: disks at their mount points, and the Stors that are started on them in turn."""

import json
import shutil
from functools import cached_property

from tests.conformance import QuickFiles, sample
from tests.support.rig import FaultyRig

LABELS = ("set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1")
SAMPLES = [sample(2000, n) for n in range(20)]

#: The system calls that change a disk.
CHANGING = {"create", "open_nameless", "write", "allocate", "set_modified", "name", "rename"}
CHANGING |= {"make_directory", "remove_directory", "unlink"}


class Host:
    """Two pairs of disks below `path`."""

    def __init__(self, path):
        self.path = path

    def start(self, **options):
        rig = FaultyRig(self.path, kind=options.pop("kind", QuickFiles), **options)
        rig.begin()
        return rig

    @cached_property
    def filled(self):
        """The first Stor on this host, when it has stored some samples."""
        rig = self.start()
        for content in SAMPLES:
            assert rig.put(content).status == 201
        return rig

    def marker(self, label):
        return json.loads((self.path / label / ".stor" / "disk.json").read_bytes())

    def empty(self, label):
        """Nothing is mounted there."""
        shutil.rmtree(self.path / label)
        (self.path / label).mkdir()

    def swap(self, one, other):
        """Two disks are mounted at each other's place."""
        (self.path / one).rename(self.path / "between")
        (self.path / other).rename(self.path / one)
        (self.path / "between").rename(self.path / other)


def member(rig, label):
    return next(m for m in rig.members if m.root.endswith(label))


def states(rig):
    return {label: member(rig, label).health.state for label in rig.disks}
