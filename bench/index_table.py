"""`python -m bench.index_table`: the host's table beside LMDB, by the number of names."""

import argparse
import gc
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from stor.disk.syscalls import Syscalls
from stor.index.memory import create
from stor.index.merge import HeldNames, Plan, build, make
from stor.index.recent import Recent
from stor.index.table import Keys, Table, load, save

try:
    import lmdb
except ImportError:
    lmdb = None

UUIDS = tuple(f"6d0f7f2e-6a0f-4b8a-9c58-3a3f0d3f{number:04x}" for number in range(24))
KEYS = Keys(bytes(range(32)))
#: As many names come between one table and the next.
RECENT = 131_072
LOOKUPS = 300_000
CHUNK = 20_000
#: Its keys are sorted in memory, at 70 bytes each.
LMDB_LIMIT = 20_000_000


@attrs.define
class Figures:
    """The measurements of one way to keep names. Times are processor time."""

    what: str
    names: int
    bytes_a_name: float = 0.0
    build_seconds: float = 0.0
    merge_seconds: float = 0.0
    load_seconds: float = 0.0
    hits_a_second: float = 0.0
    misses_a_second: float = 0.0


def name(number: int, total: int) -> bytes:
    """A made-up SHA-256; they come in order."""
    return (number * (2**63 // total)).to_bytes(8, "big").ljust(32, b"\1")


def names(total: int) -> Iterator[list[bytes]]:
    """All of them, many at a time."""
    for begin in range(0, total, CHUNK):
        yield [name(number, total) for number in range(begin, min(begin + CHUNK, total))]


def recent_names() -> list[bytes]:
    """Names that come later."""
    generator = random.Random(1)
    return [b"\xff" + generator.randbytes(31) for _ in range(RECENT)]


def asked(total: int) -> tuple[list[bytes], list[bytes]]:
    """Names that are there, and names that are not."""
    generator = random.Random(2)
    hits = [name(generator.randrange(total), total) for _ in range(LOOKUPS)]
    return hits, [b"\xfe" + generator.randbytes(31) for _ in range(LOOKUPS)]


def seconds(function: Callable[[], object]) -> float:
    """How long the processor takes."""
    gc.collect()
    gc.disable()
    begun = time.process_time()
    function()
    spent = time.process_time() - begun
    gc.enable()
    return spent


def table(total: int, directory: Path) -> Figures:
    """Stor's own."""
    figures = Figures("table", total)
    recent_fd, fds = Recent.create(bytes(32)), [create("one"), create("other")]
    recent = Recent(recent_fd)
    plan = Plan(recent_fd, fds[0], 0, 0, 1, 1, UUIDS)
    share = -(-total // len(UUIDS))
    held = [HeldNames(number, share, iter(())) for number in range(1, len(UUIDS))]
    # One set has them all: which one it is makes no difference.
    held.append(HeldNames(0, total, names(total)))
    made_names = seconds(lambda: [None for _ in names(total)])
    figures.build_seconds = seconds(lambda: build(plan, KEYS, held)) - made_names
    for sha in recent_names():
        recent.add(sha, 1, held=True)
    plan = attrs.evolve(plan, new_fd=fds[1], old_fd=fds[0], recent=recent.published, generation=2)
    figures.merge_seconds = seconds(lambda: make(plan, KEYS))
    path = str(directory / "table")
    save(fds[1], path, Syscalls())
    os.ftruncate(fds[0], 0)
    figures.load_seconds = seconds(lambda: load(path, fds[0], KEYS, 1, 0))
    os.unlink(path)
    found = Table(fds[1], KEYS)
    figures.bytes_a_name = found.contents.length / found.contents.entries
    hits, misses = asked(total)
    find = found.sets_of
    figures.hits_a_second = LOOKUPS / seconds(lambda: [find(sha) for sha in hits])
    figures.misses_a_second = LOOKUPS / seconds(lambda: [find(sha) for sha in misses])
    if not all(find(sha) for sha in hits) or any(find(sha) for sha in misses):
        raise SystemExit("the table is wrong")
    found.close()
    recent.close()
    for fd in (recent_fd, *fds):
        os.close(fd)
    return figures


def database(total: int, directory: Path) -> Figures:
    """LMDB, with the same keys, filled in their order, without syncs."""
    figures = Figures("LMDB", total)
    map_bytes = 64 * total + 2**30
    environment = lmdb.open(str(directory / "lmdb"), map_size=map_bytes, sync=False, writemap=True)

    def key(sha: bytes) -> bytes:
        return KEYS.key(sha).to_bytes(8, "big")

    def fill(its: Iterable[bytes], value: bytes, *, append: bool = False) -> None:
        with environment.begin(write=True) as transaction:
            pairs = ((key, value) for key in its)
            transaction.cursor().putmulti(pairs, append=append)

    def fill_sorted() -> None:
        fill(sorted(key(sha) for some in names(total) for sha in some), b"\0\0", append=True)

    made_names = seconds(lambda: [None for _ in names(total)])
    figures.build_seconds = seconds(fill_sorted) - made_names
    later = recent_names()
    figures.merge_seconds = seconds(lambda: fill(map(key, later), b"\0\1"))
    status = environment.stat()
    pages = status["branch_pages"] + status["leaf_pages"] + status["overflow_pages"]
    figures.bytes_a_name = pages * status["psize"] / status["entries"]
    hits, misses = asked(total)

    def find(sha: bytes) -> object:
        with environment.begin() as transaction:
            return transaction.get(key(sha))

    figures.hits_a_second = LOOKUPS / seconds(lambda: [find(sha) for sha in hits])
    figures.misses_a_second = LOOKUPS / seconds(lambda: [find(sha) for sha in misses])
    environment.close()
    return figures


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser("python -m bench.index_table", description=__doc__)
    parser.add_argument("names", nargs="*", type=float, default=[1e6, 1e7], help="1e6 1e7")
    parser.add_argument("--directory", type=Path, help="where to keep files")
    options = parser.parse_args()
    print(
        f"{'':6} {'names':>11} bytes/name  build s  merge s  load s    hits/s  misses/s  peak MiB"
    )
    for total in map(int, options.names):
        beside = lmdb is not None and total <= LMDB_LIMIT
        for measure in (table, database) if beside else (table,):
            with tempfile.TemporaryDirectory(dir=options.directory) as directory:
                its = measure(total, Path(directory))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{its.what:6} {its.names:11} {its.bytes_a_name:10.2f} {its.build_seconds:8.1f} "
                f"{its.merge_seconds:8.2f} {its.load_seconds:7.2f} {its.hits_a_second:9.0f} "
                f"{its.misses_a_second:9.0f} {peak:9}",
                flush=True,
            )
    if lmdb is None:
        print("LMDB was left out: it is not installed (pip install lmdb)")


if __name__ == "__main__":
    main()
