"""A start asks the disks the same, however many samples they hold."""

import re

from tests.conformance import QuickFiles
from tests.support.rig import FaultyRig

#: A name that chance gives.
STAGED = re.compile("[0-9a-f]{32}$")


def calls_of_a_start(path):
    """The calls of each disk until a Stor has begun: their names and paths.

    But for those of the index: the journal is as long as what was stored lately.
    """
    rig = FaultyRig(path, kind=QuickFiles)
    rig.begin()
    return {
        label: [
            (call.name, STAGED.sub("*", call.path or ""))
            for call in files.calls
            if not (call.path or "").startswith(".stor/index/")
        ]
        for label, files in rig.disks.items()
    }


def test_a_start_is_the_same_with_500_samples_and_with_few(quick_path):
    first = FaultyRig(quick_path, kind=QuickFiles)
    for number in range(20):  # on each disk, so that each has begun its journal
        assert first.put(b"one of few %d" % number).status == 201
    first.rounds(3)
    few = calls_of_a_start(quick_path)
    filled = FaultyRig(quick_path, kind=QuickFiles)
    for number in range(500):
        assert filled.put(b"%d" % number).status == 201
    assert len(filled.samples()) == 1040
    filled.rounds(3)
    assert calls_of_a_start(quick_path) == few


def test_a_start_looks_into_no_directory_of_samples(quick_path):
    filled = FaultyRig(quick_path, kind=QuickFiles)
    for number in range(20):
        assert filled.put(b"%d" % number).status == 201
    filled.rounds(3)  # after a crash only what came since the last look is looked at
    roots = [str(root) for root in filled.roots]
    for calls in calls_of_a_start(quick_path).values():
        assert len(calls) > 10
        for name, path in calls:
            assert path in (*roots, ".", "(nameless)", "") or path.startswith(".stor"), name
            # The root is listed: are there any?
            assert name != "list" or path in (*roots, ".stor/tmp", ".stor/repair", ".stor/index")
