"""The HTTP client for bodies.

Not treq's, which decodes what has a `Content-Encoding`: a sample is the bytes that are stored.
"""

from typing import Any

from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    _HTTP11ClientFactory,
)

CONNECT_SECONDS = 3.0

#: Connections that are kept open for the next request.
_KEPT = 32


class _QuietFactory(_HTTP11ClientFactory):
    """A connection is no event for the log."""

    noisy = False


def http_client(reactor: Any, ca_file: str | None) -> Agent:
    """A client with a pool of its own, and no proxy; `ca_file` has the certificates to trust (PEM).

    Without it those of the system are trusted. Raises `OSError`, `ValueError`.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool._factory = _QuietFactory
    pool.maxPersistentPerHost = _KEPT
    # The pool would send a request again that a connection ended under; `Bucket` does that.
    pool.retryAutomatically = False
    trust = None if ca_file is None else trustRootFromCertificates(_certificates(ca_file))
    policy = BrowserLikePolicyForHTTPS(trust)
    return Agent(reactor, policy, connectTimeout=CONNECT_SECONDS, pool=pool)


def _certificates(path: str) -> list[Certificate]:
    with open(path, "rb") as file:
        text = file.read()
    end = b"-----END CERTIFICATE-----"
    return [Certificate.loadPEM(part + end) for part in text.split(end)[:-1]]
