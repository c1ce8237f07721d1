"""Why a sample is found, or is not: what every place says, and what a client is told."""

from collections.abc import Awaitable, Callable
from typing import Any

from stor.digest import Digest
from stor.errors import StorError
from stor.http.answer import INTERNAL_ERROR, answer_to
from stor.store import Found


class Explanation:
    """What is found out about samples."""

    def __init__(
        self,
        places: Callable[[Digest], Awaitable[list[dict[str, Any]]]],
        find: Callable[[Digest], Awaitable[Found]],
    ) -> None:
        """`places` asks every disk; `find` finds a sample for a client, as `Store.find` does."""
        self._places = places
        self._find = find

    async def of(self, digest: Digest) -> dict[str, Any]:
        """All of it, for JSON."""
        places = await self._places(digest)
        answer: dict[str, Any]
        try:
            found = await self._find(digest)
        except StorError as error:
            refused = answer_to(error) or INTERNAL_ERROR
            answer = {"status": refused.status, "reason": str(error)}
        else:
            answer = {"status": 200, "reason": f"from {found.storage}", "size": found.size}
        return {"sha": str(digest), "answer": answer, "places": places}
