"""Which directories are known to be on stable storage: exact, and bounded."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from stor.digest import Digest
from stor.disk.durable import Blocks, DurableDirectories

#: Few enough that some share a directory, and others only its parent.
digests = st.binary(min_size=3, max_size=3).map(lambda begin: Digest(begin + bytes(29)))
near = st.tuples(*[st.sampled_from([0, 1, 7, 8, 255])] * 3).map(
    lambda t: Digest(bytes(t) + bytes(29))
)


@given(st.lists(st.tuples(st.booleans(), digests | near)), near)
def test_it_is_a_set_of_directories(steps, asked):
    known, directories = set(), DurableDirectories(Blocks(2 * 1024 * 1024))
    for adds, digest in steps:
        if adds:
            directories.add(digest)
            known.update(digest.directories)
        else:
            directories.forget(digest)
            known.difference_update(digest.directories)
    for digest in [asked, *(digest for _, digest in steps)]:
        assert directories.missing(digest) == [d for d in digest.directories if d not in known]
    directories.clear()
    for digest in [asked, *(digest for _, digest in steps)]:
        assert directories.missing(digest) == list(digest.directories)


@given(
    st.lists(st.tuples(st.sampled_from(["add", "forget", "clear"]), st.booleans(), digests | near)),
    st.integers(min_value=1, max_value=3),
)
def test_disks_that_share_little_memory_never_know_what_they_should_not(steps, blocks):
    """And of the last that was added everything is known."""
    shared = Blocks(blocks * 8192)
    disks = [DurableDirectories(shared), DurableDirectories(shared)]
    known = [set(), set()]
    for act, which, digest in steps:
        if act == "add":
            disks[which].add(digest)
            known[which].update(digest.directories)
            assert disks[which].missing(digest) == []
        elif act == "forget":
            disks[which].forget(digest)
            known[which].difference_update(digest.directories)
        else:
            disks[which].clear()
            known[which].clear()
        for disk, names in zip(disks, known, strict=True):
            for asked in (digest for _, _, digest in steps):
                missing = set(disk.missing(asked))
                assert missing >= {name for name in asked.directories if name not in names}
                assert missing.isdisjoint(names & set(asked.directories[:2]))


def test_memory_is_bounded_however_many_disks_there_are():
    shared = Blocks(64 * 8192)
    tracemalloc.start()
    try:
        for disk in [DurableDirectories(shared) for _ in range(40)]:
            for first in range(256):
                disk.add(Digest(bytes([first, first, first]) + bytes(29)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 64 * 8192
