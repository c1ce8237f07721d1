"""Who may do what."""

import base64
import binascii
import hmac

from stor.errors import Unauthorized


class Authenticator:
    """Basic credentials (RFC 7617) against the one pair of the configuration."""

    def __init__(self, user: str, password: str) -> None:
        self._expected = f"{user}:{password}".encode()

    def check(self, authorization: bytes | None) -> None:
        """Let the value of an `Authorization` header pass. Raises `Unauthorized`."""
        if authorization is None:
            raise Unauthorized("unauthorized: storing needs a user and a password (Basic)")
        scheme, _, encoded = authorization.partition(b" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            given = b""
        # compare_digest takes as long for a wrong password as for the right one.
        if scheme.lower() != b"basic" or not hmac.compare_digest(given, self._expected):
            raise Unauthorized("unauthorized: wrong user or password")
