"""How far a large body has come, over all requests that bring parts of it."""

from stor.client.api import Bytes
from stor.client.transfer import Parts
from tests.conformance import MIB


def sent(parts, offset, *counts):
    """Go on from an offset with so many bytes; what is left then."""
    rest = parts.go_on(offset)
    for count in counts:
        parts.moved(count)
    return rest


def test_what_is_sent_again_is_no_progress():
    told = []
    parts = Parts(Bytes(bytes(100)), told.append)
    sent(parts, 0, 10, 20)
    assert sum(told) == 30
    sent(parts, 20, 5)
    assert sum(told) == 30
    sent(parts, 20, 5, 10)
    assert sum(told) == 35
    # Somebody else has brought what is between.
    sent(parts, 60, 40)
    assert sum(told) == 100


def test_it_has_got_on_when_the_server_has_more():
    parts = Parts(Bytes(bytes(100)), lambda count: None)
    found = []
    for offset in (0, 0, 10, 10, 5, 11):
        sent(parts, offset, 50)
        found.append(parts.grown())
    # The first time that it fails nobody knows how much of it has come.
    assert found == [True, False, True, False, False, True]


def test_the_rest_is_what_is_behind_the_offset():
    content = bytes(range(256)) * (MIB // 256)
    rest = Parts(Bytes(content), lambda count: None).go_on(1000)
    assert rest.size == MIB - 1000
    found = []
    rest.read(10, 20).addCallback(found.append)
    assert found == [content[1010:1030]]
