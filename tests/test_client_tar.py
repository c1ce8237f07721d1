"""A TAR that comes in pieces."""

import io
import random
import tarfile

import pytest

from stor.client.tar import BadTar, TarReader
from tests.support.http import cuts

CONTENTS = {f"{n:064x}": random.Random(n).randbytes(n) for n in (0, 1, 511, 512, 513, 100_000)}


def made(kind, **more):
    """A TAR as Python's tarfile makes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, content in CONTENTS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = more
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Taken:
    """What a reader has given."""

    def __init__(self):
        self.members, self.whole = {}, []
        self.reader = TarReader(self._take)

    def _take(self, name, data, last):
        self.members[name] = self.members.get(name, b"") + data
        if last:
            self.whole.append(name)


@pytest.mark.parametrize("pieces", [1, 5, 300, 3000])
@pytest.mark.parametrize(
    "body",
    [
        made(tarfile.USTAR_FORMAT),
        made(tarfile.PAX_FORMAT),
        made(tarfile.PAX_FORMAT, comment="x" * 5000),
    ],
    ids=["ustar", "pax", "pax with headers"],
)
def test_every_member_is_given_in_whatever_pieces_it_comes(body, pieces):
    taken = Taken()
    for piece in cuts(body, pieces, random.Random(pieces)):
        taken.reader.feed(piece)
    assert taken.reader.ended
    assert taken.members == CONTENTS
    assert taken.whole == list(CONTENTS)


@pytest.mark.parametrize("size", [8 * 1024**3, 10**13])
def test_a_size_that_ustar_cannot_say(size):
    info = tarfile.TarInfo("name")
    info.size = size
    taken = Taken()
    taken.reader.feed(info.tobuf(tarfile.PAX_FORMAT) + b"x" * 1000)
    assert taken.members == {"name": b"x" * 1000}
    assert taken.whole == []


def test_what_is_cut_has_not_ended():
    body = made(tarfile.USTAR_FORMAT)
    for end in range(0, len(body) - 10_240, 509):
        taken = Taken()
        taken.reader.feed(body[:end])
        assert not taken.reader.ended
        assert all(CONTENTS[name] == taken.members[name] for name in taken.whole)


@pytest.mark.parametrize(
    "block", [b"x" * 512, b"name" + bytes(508), made(tarfile.USTAR_FORMAT)[:257] + b"x" * 255]
)
def test_what_is_no_header_is_said(block):
    with pytest.raises(BadTar):
        Taken().reader.feed(block)


def test_an_extended_header_without_end_is_not_kept():
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", 10**9
    reader = Taken().reader
    reader.feed(info.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(BadTar):
        reader.feed(bytes(10**6))
