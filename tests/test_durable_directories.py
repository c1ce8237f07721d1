"""Which directories are known to be on stable storage: exact, and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from stor.digest import Digest
from stor.disks.durable import DurableDirectories

#: Few enough that some share a directory, and others only its parent.
digests = st.binary(min_size=3, max_size=3).map(lambda begin: Digest(begin + bytes(29)))
near = st.tuples(*[st.sampled_from([0, 1, 7, 8, 255])] * 3).map(
    lambda t: Digest(bytes(t) + bytes(29))
)


@given(st.lists(st.tuples(st.booleans(), digests | near)), near)
def test_it_is_a_set_of_directories(steps, asked):
    known, directories = set(), DurableDirectories()
    for adds, digest in steps:
        if adds:
            directories.add(digest)
            known.update(digest.directories)
        else:
            directories.forget(digest)
            known.difference_update(digest.directories)
    for digest in [asked, *(digest for _, digest in steps)]:
        assert directories.missing(digest) == [d for d in digest.directories if d not in known]
    assert bool(directories) == bool(known)
    directories.clear()
    assert not directories
    assert directories.missing(asked) == list(asked.directories)
