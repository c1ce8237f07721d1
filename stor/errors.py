"""What can go wrong with a request, in words that its caller can act on.

Each message is the one line that the client is sent. What status each one has is
`stor.http.answer`'s business.
"""

from collections.abc import Sequence


class StorError(Exception):
    """A failure whose one line says what was wrong and, if there is anything, what to do."""


class NotFound(StorError):
    """Every place that could hold the sample answered, and none does.

    Or, with another `reason`, what is asked for is nothing that this Stor has.
    """

    def __init__(self, tiers: Sequence[str] = (), reason: str = "") -> None:
        """`tiers` are the kinds of places that were asked."""
        super().__init__(f"not found: {reason or 'no storage holds this sample'}")
        self.tiers = tuple(tiers)


class Gone(StorError):
    """What is asked for was known once, and is not any more."""


class Unavailable(StorError):
    """A place that is needed for the answer did not give one; to be tried again."""

    def __init__(self, reason: str, retry_after_seconds: int = 15) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Damaged(StorError):
    """A copy is not the sample it is named for: wrong bytes, wrong size or no regular file."""


class Changed(Damaged):
    """The file of a copy was changed, or replaced by another, since it was opened."""


class NoRoom(StorError):
    """No writable set of storages has room for the sample."""


class TooLarge(StorError):
    """The body is larger than this Stor accepts."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"too large: at most {limit_bytes} bytes are accepted (max_upload_bytes)")


class Mismatch(StorError):
    """The body is not the sample that the URL names."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(
            f"content mismatch: the URL names {expected}, the SHA-256 of the body is {received}; "
            "nothing was kept"
        )


class Superseded(StorError):
    """Another request goes on with the same upload."""

    def __init__(self) -> None:
        super().__init__("another request goes on with this upload: ask how far it is (HEAD)")


class Unauthorized(StorError):
    """No credentials, or wrong ones."""
