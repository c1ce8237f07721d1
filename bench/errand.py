"""What one client does at a time, and endless supplies of it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, cycle

import attrs

from bench.body import Bodies, Body
from bench.exchange import Conversation, asking, head
from bench.server import Server
from stor.digest import Digest


@attrs.frozen
class Errand:
    """A conversation with a server; `content_bytes` of samples go either way in it.

    The time that it takes is of interest when it is `watched`.
    """

    conversation: Conversation
    content_bytes: int = 0
    watched: bool = True


def fetches(server: Server, bodies: Sequence[Body]) -> Iterator[Errand]:
    """GET of stored samples, one after the other."""
    requests = [
        ([head("GET", server.base, server.path(body.digest))], body.size) for body in bodies
    ]
    for request, size in cycle(requests):
        yield Errand(asking(request, 200, size), size)


def heads(server: Server, bodies: Sequence[Body]) -> Iterator[Errand]:
    """HEAD of stored samples, one after the other."""
    requests = [
        ([head("HEAD", server.base, server.path(body.digest))], body.size) for body in bodies
    ]
    for request, size in cycle(requests):
        yield Errand(asking(request, 200, size))


def any_digest() -> Digest:
    """A digest that nobody has a sample of, however many there are."""
    return Digest(os.urandom(32))


def misses(server: Server, stranger: Callable[[], Digest] = any_digest) -> Iterator[Errand]:
    """GET and HEAD in turn of samples that nobody has, no two the same."""
    for method in cycle(["GET", "HEAD"]):
        yield Errand(asking([head(method, server.base, server.path(stranger()))], 404))


def stores(server: Server, bodies: Iterable[Body]) -> Iterator[Errand]:
    """POST of samples."""
    for body in bodies:
        yield Errand(server.storing(body), body.size)


def mixture(server: Server, stored: Sequence[Body], new: Bodies) -> Iterator[Errand]:
    """Nine GETs of stored samples, watched, and then a POST of one that is new; and so on."""
    gets, posts = fetches(server, stored), stores(server, new)
    for number in count(1):
        yield next(gets) if number % 10 else attrs.evolve(next(posts), watched=False)
