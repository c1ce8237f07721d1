"""Who may do what."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Iterable

from stor.errors import Unauthorized
from stor.http.accounts import Accounts


class Authenticator:
    """Basic credentials (RFC 7617): those of the configuration, and the users of a file."""

    def __init__(self, known: Iterable[str], accounts: Accounts | None = None) -> None:
        """`known` are `user:password`."""
        # What is kept, also of passwords that were verified, is worth nothing without this.
        self._key = secrets.token_bytes(32)
        self._known = [self._seal(credentials.encode()) for credentials in known]
        self._accounts = accounts

    async def check(self, authorization: bytes | None) -> None:
        """Let the value of an `Authorization` header pass. Raises `Unauthorized`, `Busy`."""
        if authorization is None:
            raise Unauthorized("unauthorized: a user and a password are needed (Basic)")
        scheme, _, encoded = authorization.partition(b" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            given = b""
        user, colon, password = given.partition(b":")
        seal = self._seal(given)
        # All are compared, each in a time that says nothing of how much is right.
        known = sum(hmac.compare_digest(seal, one) for one in self._known) > 0
        if scheme.lower() == b"basic" and colon:
            if known:
                return
            if self._accounts is not None and await self._accounts.know(user, password, seal):
                return
        raise Unauthorized("unauthorized: wrong user or password")

    def _seal(self, credentials: bytes) -> bytes:
        return hmac.digest(self._key, credentials, "sha256")
