"""Many samples in one TAR: what is in it, what is not, and what it takes while it is sent."""

import io
import os
import random
import tarfile

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from stor.block_sums import MIN_BLOCK_BYTES
from stor.digest import Digest
from stor.errors import NotFound
from stor.http.batch import Ahead, BatchAnswer, header
from stor.http.bulk import ShaList
from tests.support.http import (
    AUTHORIZED,
    assert_one_line,
    descriptors,
    no_bug_logged,
    take_all,
)
from tests.support.rig import Rig, request_bytes

SIZES = (0, 1, 511, 512, 513, 5000, 262_144, 262_145, 3_000_001)
CONTENTS = {size: random.Random(size).randbytes(size) for size in SIZES}
SHAS = [str(Digest.of(content)) for content in CONTENTS.values()]
ABSENT = "0" * 64


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    for content in CONTENTS.values():
        assert rig.put(content).status == 201
    return rig


def ask(rig, shas, path="/batch", headers=()):
    body = "".join(f"{sha}\n" for sha in shas).encode()
    return rig.request("POST", path, headers, body)


def members(body):
    """What the TAR has, in its order: names and contents; and what its last member says."""
    with tarfile.open(fileobj=io.BytesIO(body), mode="r|") as tar:
        found = [(member, tar.extractfile(member).read()) for member in tar]
    assert all(member.isreg() and member.mode == 0o644 for member, _ in found)
    *samples, (last, missing) = [(member.name, content) for member, content in found]
    assert last == "missing.txt"
    assert body.endswith(bytes(1024))
    assert len(body) % 512 == 0
    return samples, missing.decode()


@pytest.mark.parametrize("seed", range(3))
def test_samples_come_in_the_order_asked(rig, seed):
    asked = random.Random(seed).choices(SHAS, k=20)
    response = ask(rig, asked)
    assert response.status == 200
    assert response.headers["content-type"] == "application/x-tar"
    assert response.headers["cache-control"] == "no-store"
    samples, missing = members(response.body)
    assert [name for name, _ in samples] == asked
    assert all(str(Digest.of(content)) == name for name, content in samples)
    assert missing == "end 20 0 0\n"


def test_names_are_in_lower_case_and_octets_are_a_list_too(rig):
    upper = ask(rig, [sha.upper() for sha in SHAS])
    raw = b"".join(map(bytes.fromhex, SHAS))
    octets = rig.request("POST", "/batch", [("Content-Type", "application/octet-stream")], raw)
    assert members(upper.body) == members(octets.body)
    assert [name for name, _ in members(upper.body)[0]] == SHAS


def test_a_member_is_as_old_as_the_sample(rig):
    (copy, _) = rig.copies(CONTENTS[1])
    for path in rig.copies(CONTENTS[1]):
        os.utime(path, (1_000_000, 1_000_000))
    with tarfile.open(fileobj=io.BytesIO(ask(rig, [copy.stem]).body)) as tar:
        assert tar.getmembers()[0].mtime == 1_000_000


@pytest.mark.parametrize("asked", [[], [ABSENT], [ABSENT, *SHAS, ABSENT], ["f" * 64] * 500])
def test_what_is_not_there_is_listed_at_the_end(rig, asked):
    samples, missing = members(ask(rig, asked).body)
    absent = [sha for sha in asked if sha not in SHAS]
    assert [name for name, _ in samples] == [sha for sha in asked if sha in SHAS]
    lines = "".join(f"missing {sha}\n" for sha in absent)
    assert missing == f"{lines}end {len(asked)} {len(absent)} 0\n"


def test_what_cannot_be_said_is_unknown(rig):
    for root in rig.roots:
        os.rename(root, f"{root} away")
    rig.probe()
    samples, missing = members(ask(rig, SHAS[:2]).body)
    assert samples == []
    assert missing == f"unknown {SHAS[0]}\nunknown {SHAS[1]}\nend 2 0 2\n"


@pytest.mark.parametrize("size", [5000, 3_000_001])
def test_a_bad_copy_is_passed_over_for_a_good_one(rig, size):
    bad, _ = rig.copies(CONTENTS[size])
    with bad.open("r+b") as file:
        file.seek(size - 100)
        file.write(b"damaged")
    for _ in range(5):
        samples, missing = members(ask(rig, SHAS).body)
        assert [content for _, content in samples] == list(CONTENTS.values())
        assert missing == f"end {len(SHAS)} 0 0\n"


def test_a_small_one_without_a_good_copy_is_listed(rig):
    for path in rig.copies(CONTENTS[5000]):
        path.write_bytes(b"damaged")
    sha = str(Digest.of(CONTENTS[5000]))
    samples, missing = members(ask(rig, SHAS).body)
    assert [name for name, _ in samples] == [other for other in SHAS if other != sha]
    assert missing == f"unknown {sha}\nend {len(SHAS)} 0 1\n"


@pytest.mark.parametrize("asked", [[3_000_001], [1, 3_000_001, 5000]])
def test_the_answer_is_cut_when_nothing_good_is_left_of_what_has_begun(rig, asked):
    for path in rig.copies(CONTENTS[3_000_001]):
        with path.open("r+b") as file:
            file.seek(2 * MIN_BLOCK_BYTES)
            file.write(b"damaged")
    connection = rig.connect()
    shas = [str(Digest.of(CONTENTS[size])) for size in asked]
    body = "".join(f"{sha}\n" for sha in shas).encode()
    connection.send(request_bytes("POST", "/batch", body=body))
    assert connection.aborted
    (response,) = connection.responses(["POST"])
    assert not response.complete
    assert b"damaged" not in response.body


class TestRefusals:
    def test_a_malformed_line_is_named_before_the_answer_begins(self, rig):
        response = ask(rig, [SHAS[0], "x"])
        assert_one_line(response, 400)
        assert "line 2" in response.text

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
    def test_other_methods_are_not_allowed(self, rig, method):
        response = rig.request(method, "/batch")
        assert response.status == 405
        assert response.headers["allow"] == "POST"

    def test_an_order_that_is_not_known(self, rig):
        assert ask(rig, SHAS, "/batch?order=asked").status == 200
        assert_one_line(ask(rig, SHAS, "/batch?order=size"), 400)
        assert_one_line(ask(rig, SHAS, "/batch?order=disk&order=disk"), 400)
        misspelt = ask(rig, SHAS, "/batch?ordr=disk")
        assert_one_line(misspelt, 400)
        assert misspelt.text == 'unknown parameter "ordr": expected order\n'

    def test_strangers_with_read_auth(self, rig):
        rig.reconfigure(read_auth=True)
        assert_one_line(ask(rig, SHAS), 401)
        assert ask(rig, SHAS, headers=[AUTHORIZED]).status == 200


def test_a_client_that_takes_nothing_holds_little_and_leaves_nothing(rig):
    before = descriptors()
    connection = rig.connect()
    connection.stop_taking()
    body = "".join(f"{sha}\n" for sha in SHAS[::-1] * 20).encode()
    connection.send(request_bytes("POST", "/batch", body=body))
    assert rig.budgets.ahead.kept_bytes <= 16 * 256 * 1024
    assert 0 < descriptors() - before < 64
    connection.close()
    assert rig.budgets.ahead.kept_bytes == 0
    assert rig.budgets.lists.kept_bytes == 0
    assert descriptors() == before


def test_a_client_that_takes_little_at_a_time_gets_all(rig):
    connection = rig.connect()
    connection.stop_taking()
    body = "".join(f"{sha}\n" for sha in SHAS).encode()
    request = request_bytes("POST", "/batch", [("Connection", "close")], body)
    connection.send(request)
    take_all(connection, 10_000)
    (response,) = connection.responses(["POST"])
    assert [name for name, _ in members(response.body)[0]] == SHAS


class Fake:
    """A sample in memory."""

    modified_ns = 0

    def __init__(self, content, whole=True):
        self.content, self.size, self.closed = content, len(content), False
        self.whole = content if whole else None

    async def read(self, offset, length):
        return self.content[offset : offset + length]

    def close(self):
        self.closed = True


class Opener:
    """Opens samples when the test says so."""

    def __init__(self):
        self.waiting, self.opened = {}, []

    def __call__(self, digest):
        self.opened.append(str(digest))
        return self.waiting.setdefault(str(digest), Deferred())


def listed(*shas):
    shas_list = ShaList(octets=False)
    shas_list.add("".join(f"{sha}\n" for sha in shas).encode())
    shas_list.end()
    return shas_list


def reading(answer):
    outcomes = []
    Deferred.fromCoroutine(answer.read(0, 100_000)).addCallback(outcomes.append)
    return outcomes


MANY = [f"{n:064x}" for n in range(1, 101)]


def test_sixteen_are_opened_at_once_and_given_in_order():
    opener, ahead = Opener(), Ahead()
    answer = BatchAnswer(listed(*MANY), opener, ahead, Clock(), 0)
    got = reading(answer)
    assert opener.opened == MANY[:16]
    for sha in reversed(MANY[:16]):
        assert got == []
        opener.waiting[sha].callback(Fake(sha.encode()))
    data = got[0]
    assert [data[n : n + 64].decode() for n in range(512, len(data), 1024)] == MANY[:16]
    answer.close()
    assert ahead.kept_bytes == 0


def drained(answer):
    """All bytes of an answer whose samples are there."""
    body = b""
    while data := reading(answer)[0]:
        body += data
    return body


@pytest.mark.parametrize("apart", [1, 2, 7, 50, 1000])
def test_what_is_in_memory_is_not_opened_and_all_come_in_order(apart):
    """Some have to be opened and some are nowhere, in between."""
    opened = []

    def at_once(raw):
        number = int.from_bytes(raw, "big")
        if number % 10 == 3:
            return NotFound(("disk",))
        return None if number % apart == 0 else Fake(raw)

    async def open_sample(digest):
        opened.append(str(digest))
        return Fake(digest.raw)

    answer = BatchAnswer(listed(*MANY), open_sample, Ahead(), Immediate(), 0, at_once=at_once)
    samples, missing = members(drained(answer))
    absent = [sha for n, sha in enumerate(MANY, 1) if n % 10 == 3]
    assert samples == [(sha, bytes.fromhex(sha)) for sha in MANY if sha not in absent]
    assert missing == "".join(f"missing {sha}\n" for sha in absent) + f"end 100 {len(absent)} 0\n"
    assert not set(opened) & set(absent)
    assert len(opened) <= 16 * len([n for n in range(1, 101) if n % apart == 0])
    assert opened or apart > 100


class Immediate(Clock):
    """Another turn comes at once."""

    def callLater(self, seconds, function, *args, **kwargs):
        call = super().callLater(seconds, function, *args, **kwargs)
        self.advance(seconds)
        return call


@pytest.mark.parametrize("window", [1, 30, 50, 100, 1000])
def test_another_order_is_made_of_so_many_at_a_time(window):
    asked = []

    async def order(raw):
        asked.append(len(raw) // 32)
        shas = [raw[at : at + 32] for at in range(0, len(raw), 32)]
        return b"".join(reversed(shas))

    async def open_sample(digest):
        if digest.raw[-1] == 7:
            raise NotFound
        return Fake(digest.raw)

    answer = BatchAnswer(
        listed(*MANY), open_sample, Ahead(), Immediate(), 0, order=order, window=window
    )
    samples, missing = members(drained(answer))
    parts = [MANY[begin : begin + window] for begin in range(0, 100, window)]
    expected = [sha for part in parts for sha in reversed(part)]
    assert [name for name, _ in samples] == [sha for sha in expected if sha != MANY[6]]
    assert missing == f"missing {MANY[6]}\nend 100 1 0\n"
    assert asked == [len(part) for part in parts]


class TestDiskOrder:
    """Of each set in the order of inodes, side by side; what is not known comes last."""

    @pytest.fixture
    def contents(self, tmp_path):
        """Samples on two sets, some of which are in the base and some in the journal alone."""
        self.rig = Rig(tmp_path)
        contents = {}
        for n in range(60):
            content = b"%d" % n
            assert self.rig.put(content).status == 201
            contents[str(Digest.of(content))] = content
        return contents

    def asked(self, shas):
        return members(ask(self.rig, shas, "/batch?order=disk").body)

    def inodes(self, names, contents):
        """By sets, in the order in which they came."""
        found = {}
        for name in names:
            copy = self.rig.copies(contents[name])[0]
            root = next(root for root in self.rig.roots if copy.is_relative_to(root))
            found.setdefault(root, []).append(copy.stat().st_ino)
        return found

    def test_samples_come_in_the_order_of_inodes(self, contents):
        shas = sorted(contents)
        samples, missing = self.asked([ABSENT, *shas])
        assert dict(samples) == contents
        assert missing == f"missing {ABSENT}\nend 61 1 0\n"
        found = self.inodes([name for name, _ in samples], contents)
        assert len(found) == 2
        for inodes in found.values():
            assert inodes == sorted(inodes)
        # A test that could not fail would be none: the order asked is another.
        assert any(one != sorted(one) for one in self.inodes(shas, contents).values())

    def test_the_sets_are_side_by_side(self, contents):
        samples, _ = self.asked(sorted(contents))
        owners = [
            next(n for n, root in enumerate(self.rig.roots) if copy.is_relative_to(root)) // 2
            for copy in (self.rig.copies(contents[name])[0] for name, _ in samples)
        ]
        share = owners.count(0) / len(owners)
        for end in range(10, len(owners)):
            assert abs(owners[:end].count(0) - share * end) <= 2

    def test_it_is_an_order_of_all_also_where_no_disk_tells(self, contents):
        for member in self.rig.members:
            member.names = None
        samples, missing = self.asked(sorted(contents))
        assert dict(samples) == contents
        assert missing == "end 60 0 0\n"

    def test_as_often_as_asked(self, contents):
        samples, _ = self.asked([*contents, *contents])
        assert sorted(name for name, _ in samples) == sorted([*contents, *contents])


def test_without_room_ahead_one_is_opened_after_the_other():
    opener, ahead = Opener(), Ahead(total_bytes=0)
    answer = BatchAnswer(listed(*MANY), opener, ahead, Clock(), 0)
    for n, sha in enumerate(MANY[:3], 1):
        got = reading(answer)
        assert opener.opened == MANY[:n]
        opener.waiting[sha].callback(Fake(b"x"))
        assert len(got) == 1
    answer.close()


def test_the_room_ahead_is_shared():
    openers, ahead = [Opener() for _ in range(3)], Ahead(total_bytes=20 * 256 * 1024)
    answers = [BatchAnswer(listed(*MANY), opener, ahead, Clock(), 0) for opener in openers]
    for answer in answers:
        reading(answer)
    assert [len(opener.opened) for opener in openers] == [16, 6, 1]
    for answer in answers:
        answer.close()
    assert ahead.kept_bytes == 0


def test_what_is_opened_after_the_end_is_closed():
    opener = Opener()
    answer = BatchAnswer(listed(*MANY[:3]), opener, Ahead(), Clock(), 0)
    reading(answer)
    first, *others = opener.waiting.values()
    first.callback(Fake(b"x"))
    answer.close()
    samples = [Fake(b"x") for _ in others]
    for waiting, sample in zip(others, samples, strict=True):
        waiting.callback(sample)
    assert all(sample.closed for sample in samples)


def test_for_a_client_that_is_gone_nothing_more_is_opened():
    opener = Opener()
    answer = BatchAnswer(listed(*MANY), opener, Ahead(), Clock(), 0)
    got = reading(answer)
    answer.give_up()
    samples = [Fake(b"x") for _ in opener.opened]
    for waiting, sample in zip(list(opener.waiting.values()), samples, strict=True):
        waiting.callback(sample)
    assert got == [b""]
    answer.close()
    assert len(opener.opened) == 16
    assert all(sample.closed for sample in samples)


class Turns(Clock):
    """Counts what is left for another turn of the reactor."""

    count = 0

    def callLater(self, *args, **kwargs):
        self.count += 1
        return super().callLater(*args, **kwargs)


def test_others_have_their_turn_while_nothing_is_found():
    clock = Turns()

    async def nobody(digest):
        raise NotFound

    answer = BatchAnswer(listed(*MANY * 10), nobody, Ahead(), clock, 0)
    got = reading(answer)
    clock.advance(0)
    assert got
    assert clock.count >= 10


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 10**13])
def test_a_header_says_any_size(size):
    info = tarfile.TarInfo.frombuf(header("name", 5, 0)[:512], "ascii", "strict")
    assert (info.name, info.size, info.mode, info.type) == ("name", 5, 0o644, tarfile.REGTYPE)
    body = io.BytesIO(header("0" * 64, size, 1_500_000_000_999_999_999))
    with tarfile.open(fileobj=body) as tar:
        member = tar.next()
    assert (member.name, member.size, int(member.mtime)) == ("0" * 64, size, 1_500_000_000)


def test_a_large_sample_is_read_as_it_is_taken():
    content = random.Random(1).randbytes(1_000_000)
    sample = Fake(content, whole=False)
    answer = BatchAnswer(listed(MANY[0]), lambda digest: succeed(sample), Ahead(), Clock(), 0)
    received = b""
    while not sample.closed:
        (data,) = reading(answer)
        assert len(data) <= 200_000
        received += data
    assert received[512:1_000_512] == content
    answer.close()
