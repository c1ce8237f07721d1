"""What a configuration says that can be read and makes no sense."""

import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network
from itertools import combinations

#: The password of the example, which everybody has.
_SAMPLE = "writer_pass"


def of_sets(sets: Sequence[Sequence[str]], writable: re.Pattern[str]) -> Iterator[str]:
    """Roots within each other, and sets that take no samples by mistake."""
    roots = [root for of_set in sets for root in of_set]
    for one, other in combinations(sorted(roots), 2):
        if other.startswith(one.rstrip("/") + "/"):
            yield f"storage_pairs: {other} is below {one}: expected disks that are mounted apart"
    matched = [root for root in roots if writable.search(root)]
    if roots and not matched:
        yield (
            f'writable_pairs_regex: "{writable.pattern}" matches no storage root: no set takes '
            "new samples"
        )
    for of_set in sets:
        others = [root for root in of_set if root not in matched]
        if matched and others and len(others) < len(of_set):
            first = next(root for root in of_set if root in matched)
            yield (
                f"writable_pairs_regex: matches {first} and not {others[0]}, which are of one set: "
                "the set takes no new samples"
            )


def of_credentials(given: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Passwords that anybody would try. They are not shown."""
    for user, password in given:
        if password == _SAMPLE:
            yield f"basic_auth: the password of {user} is the example's, which everybody knows"
        elif password == user:
            yield f"basic_auth: the password of {user} is the user's name"


def of_access(
    *, read_auth: bool, public_listing: bool, status_auth: bool, proxies: Iterable[str]
) -> Iterator[str]:
    """Doors that are open beside one that is shut."""
    if read_auth and public_listing:
        yield "public_listing: strangers may list the samples, which read_auth keeps from them"
    if status_auth and public_listing:
        yield "public_listing: strangers may list the samples, and not see the pages (status_auth)"
    for proxy in proxies:
        if proxy != "unix" and ip_network(proxy).prefixlen == 0:
            yield f"trusted_proxies: {proxy} is everybody: any client can say who it is"


def of_tiers(*, s3: bool, s3_write: str, order: Sequence[str]) -> Iterator[str]:
    """An S3 that nobody asks."""
    if s3 and s3_write == "never" and "s3" not in order:
        yield 'lookup_order: S3 is enabled and never asked: expected "s3" in it'
