"""The samples that bench makes."""

import hashlib
from itertools import islice

import pytest

from bench.body import Bodies, size_name
from bench.crowd import Crowd


def test_bodies_are_distinct_and_named_by_what_they_hold():
    bodies = list(islice(Bodies(100), 5))
    assert len({body.digest for body in bodies}) == 5
    for body in bodies:
        content = b"".join(body.parts)
        assert len(content) == body.size == 100
        assert body.digest.raw == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("size", "name"), [(100, "100 B"), (1536, "1536 B"), (4096, "4 KiB"), (200 * 2**20, "200 MiB")]
)
def test_a_size_is_written_as_people_say_it(size, name):
    assert size_name(size) == name


def test_a_crowd_is_laid_out_as_stor_does_it_and_a_stranger_is_in_its_midst(tmp_path):
    crowd = Crowd(4000)
    crowd.fill(tmp_path / "disk")
    files = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert len(files) == 4000
    for path in files:
        name = path.stem
        assert path.relative_to(tmp_path / "disk").parts == (
            *(name[:2], name[2:4], name[4:6]),
            f"{name}.dat",
        )
    for _ in range(50):
        stranger = tmp_path / "disk" / crowd.stranger().disk_path
        assert stranger.parent.is_dir()
        assert not stranger.exists()
