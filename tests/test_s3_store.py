"""Stores with S3 keep what every store promises; copies to S3 are sent until they are there."""

import errno
import itertools
import json
import os
from functools import cache

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from stor.digest import Digest
from stor.errors import NotFound
from stor.mirror.outbox import Outbox
from stor.s3.client import Meaning, meaning_of
from stor.s3.incoming import S3Puts
from stor.s3.queue import CopyQueue
from stor.s3.spool import Spool
from tests.conformance import (
    MIB,
    QuickFiles,
    StoreConformance,
    WritableStoreConformance,
    put,
    read,
    result_of,
    sample,
    start,
)
from tests.support.http import AUTHORIZED, assert_one_line
from tests.support.pools import InlinePool
from tests.support.rig import FaultyRig, Rig
from tests.support.s3 import MemoryResponse, MemoryS3


def with_s3(rig, s3, **changes):
    """The store of `rig`, which also looks in S3."""
    rig.reconfigure(bucket=s3.bucket_over(rig.clock), order=("disk", "s3"), **changes)
    return rig.store


def into_s3(path, s3):
    """A store that puts samples into S3 alone."""
    bucket = s3.bucket_over(Clock())
    spool = Spool(str(path / "spool"), 100 * MIB, InlinePool())
    return with_s3(Rig(path, ()), s3, puts=S3Puts(bucket, spool))


def filled(contents):
    """A bucket that has these samples."""
    s3 = MemoryS3()
    s3.objects = {Digest.of(content).s3_key: content for content in contents}
    return s3


class TestS3Alone(WritableStoreConformance):
    @pytest.fixture
    def holding(self, tmp_path):
        def build(contents):
            return into_s3(tmp_path, filled(contents))

        return build


@pytest.mark.parametrize("path", ["/index", "/landed", "/landed?wait=1"])
def test_what_s3_alone_keeps_is_not_listed_and_nobody_asks_again(tmp_path, path):
    bucket = MemoryS3().bucket_over(Clock())
    rig = Rig(tmp_path, ())
    spool = Spool(str(tmp_path / "spool"), 100 * MIB, InlinePool())
    rig.reconfigure(bucket=bucket, order=("s3",), puts=S3Puts(bucket, spool))
    response = rig.request("GET", path, [AUTHORIZED])
    assert_one_line(response, 404)
    assert "retry-after" not in response.headers
    assert "S3 alone" in response.text


class TestPairWithSamplesInS3(StoreConformance):
    @pytest.fixture
    def holding(self, tmp_path):
        return lambda contents: with_s3(Rig(tmp_path, (2,)), filled(contents))


class TestPairBesideS3(WritableStoreConformance):
    @pytest.fixture
    def holding(self, tmp_path):
        def build(contents):
            rig = Rig(tmp_path, (2,), files=QuickFiles)
            for content in contents:
                result_of(put(rig.store, content))
            return with_s3(rig, MemoryS3())

        return build


@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1, 20 * MIB])
def test_large_samples_are_sent_in_parts(tmp_path, size):
    s3, content = MemoryS3(), sample(size)
    store = into_s3(tmp_path, s3)
    assert result_of(put(store, content))[1]
    assert s3.objects == {Digest.of(content).s3_key: content}
    assert ("begin" in dict(s3.calls)) == (size > 8 * MIB)
    assert s3.uploads == {}


class Unconditional(MemoryS3):
    """An engine that does not know If-None-Match, as many do not."""

    def put(self, digest, content, replace):
        return super().put(digest, content, True)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_several_uploads_one_has_made_the_sample(tmp_path, order):
    s3, content = Unconditional(), sample(1000)
    puts = S3Puts(s3.bucket_over(Clock()), Spool(str(tmp_path), 100 * MIB, InlinePool()))
    uploads = [puts.expect(Digest.of(content), len(content)) for _ in order]
    for upload in uploads:
        assert result_of(upload.stored()) is None  # all have looked before the first is stored
    for upload in uploads:
        result_of(upload.begin())
        result_of(upload.add([content], last=True))
    created = [result_of(uploads[n].commit())[1] for n in order]
    assert created == [True, False, False]
    for upload in uploads:
        result_of(upload.leave())
    assert list(s3.objects.values()) == [content]


@cache
def reads_of_a_get(path, content):
    rig = FaultyRig(path, (1,))
    rig.put(content)
    before = len(rig.log)
    rig.get(content)
    return [call.name for _, call in rig.log[before:]].count("read")


def test_a_disk_that_fails_at_any_read_is_gone_on_from_s3_there(tmp_path):
    content = sample(3 * MIB + 5)
    reads = reads_of_a_get(tmp_path / "counting", content)
    assert reads > 3
    for n in range(reads):
        rig = FaultyRig(tmp_path / str(n), (1,), kind=lambda *a, n=n: FailingRead(n, *a))
        rig.put(content)
        s3 = filled([content])
        with_s3(rig, s3)
        rig.disks["set0/disk0"].armed = True
        response = rig.get(content)
        assert (response.status, response.body) == (200, content)
        assert s3.calls[-1][0] == "GET"


@pytest.mark.parametrize("block", [0, 5, 11])
def test_a_block_that_is_bad_on_every_disk_comes_from_s3_until_a_post_mends_it(tmp_path, block):
    content, place = sample(3 * MIB), block * 256 * 1024 + 77
    rig = Rig(tmp_path, (2,), files=QuickFiles)
    rig.put(content)
    with_s3(rig, filled([content]))
    for copy in rig.copies(content):
        with copy.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([content[place] ^ 1]), place)
    for _ in range(3):
        part = rig.get(content, [("Range", f"bytes={place}-{place + 99}")])
        assert (part.status, part.body) == (206, content[place : place + 100])
        whole = rig.get(content)
        assert (whole.status, whole.complete) == (200, True)
        exact = whole.body == content
        assert exact
        rig.rounds(1)
    assert rig.put(content).status == 201
    assert all(copy.read_bytes() == content for copy in rig.copies(content))


class FailingRead(QuickFiles):
    """Fails the n-th read of a sample when it is armed."""

    armed = False

    def __init__(self, n, *arguments):
        super().__init__(*arguments)
        self._left = n

    def _before(self, name, args):
        if name == "read" and self.armed:
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super()._before(name, args)


class Copying:
    """A pair whose samples are copied to S3."""

    def __init__(self, path, files=QuickFiles):
        self.s3 = MemoryS3()
        self.rig = Rig(path, (2,), files=files)
        self.clock = self.rig.clock
        self.begin()

    def begin(self):
        """What a start does, which knows only what is on the disks."""
        mirrors, bucket = self.rig.mirrors, self.s3.bucket_over(self.clock)
        outbox = Outbox(lambda: mirrors.mirrors, self.clock, self.announce)
        self.queue = CopyQueue(self.rig.disk_tier.open, outbox.forget, self.clock)
        self.queue.send_to(bucket)
        mirrors.report_to(outbox)
        self.rig.reconfigure(copies=self.queue, bucket=bucket)
        result_of(outbox.recall())

    def announce(self, digest):
        self.queue.add(digest)

    def put(self, content):
        assert self.rig.put(content).status == 201

    def notes(self):
        return [path for root in self.rig.roots for path in root.glob(".stor/s3/*")]

    def picture(self):
        headers = [("Accept", "application/json")]
        return json.loads(self.rig.request("GET", "/status", headers).body)["s3"]["copies"]


@pytest.fixture
def copying(tmp_path):
    return Copying(tmp_path)


def test_a_sample_is_copied_and_forgotten(copying):
    copying.put(b"content")
    assert copying.s3.objects == {Digest.of(b"content").s3_key: b"content"}
    assert copying.notes() == []
    assert copying.picture() == {"waiting": 0, "oldest_seconds": 0, "sent": 1}


def test_a_copy_that_fails_is_tried_again_after_growing_pauses(copying):
    copying.s3.unwritable = True
    copying.put(b"content")
    tries = [copying.clock.seconds()]
    for _ in range(5000):
        copying.s3.calls.clear()
        copying.clock.advance(1)
        if ("put", Digest.of(b"content").s3_key) in copying.s3.calls:
            tries.append(copying.clock.seconds())
    pauses = [round(later - sooner) for sooner, later in itertools.pairwise(tries)]
    assert pauses[:12] == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]
    assert len(copying.notes()) == 2
    copying.s3.unwritable = False
    copying.clock.advance(600)
    assert copying.notes() == []


def test_the_queue_is_in_the_status(copying):
    copying.s3.unwritable = True
    for number in range(3):
        copying.put(b"%d" % number)
        copying.clock.advance(10)
    assert copying.picture() == {"waiting": 3, "oldest_seconds": 30, "sent": 0}


def test_while_s3_is_away_nothing_is_tried_and_all_is_sent_when_it_is_back(copying):
    """However many: each of them fails at once."""
    copying.s3.refusing = True
    samples = [b"%d" % number for number in range(500)]
    for content in samples:
        copying.put(content)
    assert copying.rig.store.tiers.bucket.fault
    copying.s3.calls.clear()
    copying.clock.advance(10_000)
    assert copying.s3.calls == []
    assert copying.picture()["waiting"] == len(samples)

    copying.s3.refusing = False
    assert result_of(copying.rig.store.tiers.bucket.probe())
    copying.queue.resume()
    assert set(copying.s3.objects.values()) == set(samples)
    assert copying.notes() == []
    assert copying.picture()["waiting"] == 0


def test_what_was_not_sent_is_sent_by_the_next_process(copying):
    copying.s3.refusing = True
    for number in range(5):
        copying.put(b"%d" % number)
    copying.queue.stop()
    copying.s3.refusing = False
    copying.begin()
    assert len(copying.s3.objects) == 5
    assert copying.notes() == []


@pytest.mark.parametrize("sent", [False, True], ids=["S3 is away after it", "S3 is there"])
def test_a_reload_in_the_middle_of_a_commit_keeps_the_sample_s_note(tmp_path, sent):
    """It recalls what is noted, and finds a note without a sample."""

    class Reloading(QuickFiles):
        def name(self, fd, path, directory_fd):
            if copying is not None and not looks:
                result_of(copying.rig.mirrors.outbox.recall())
                looks.append(len(copying.notes()))
                copying.s3.refusing = not sent
            super().name(fd, path, directory_fd)

    looks, copying = [], None
    copying = Copying(tmp_path, Reloading)
    copying.put(b"content")
    assert looks == [2]
    assert len(copying.notes()) == (0 if sent else 2)
    copying.queue.stop()
    copying.s3.refusing = False
    copying.begin()
    assert copying.s3.objects == {Digest.of(b"content").s3_key: b"content"}
    assert copying.notes() == []


def test_a_sample_that_is_stored_while_it_is_looked_for_is_sent():
    """The queue was told of it a moment after no disk had it."""
    s3, clock, content = MemoryS3(), Clock(), b"content"
    digest, looking = Digest.of(content), [Deferred()]

    async def open_sample(digest):
        if looking:
            await looking.pop()
        return Held(content)

    async def forget(digest):
        pass

    queue = CopyQueue(open_sample, forget, clock)
    queue.send_to(s3.bucket_over(clock))
    failing = looking[0]
    queue.add(digest)
    queue.add(digest)
    failing.errback(NotFound())
    clock.advance(1)
    assert s3.objects == {digest.s3_key: content}
    assert len(queue) == 0


class Held:
    """A small sample, open."""

    def __init__(self, content):
        self.whole, self.size = content, len(content)

    def close(self):
        pass


def test_a_note_without_a_sample_means_nothing(copying):
    copying.queue.add(Digest.of(b"nobody has it"))
    assert len(copying.queue) == 0
    assert copying.s3.objects == {}


@pytest.mark.parametrize("order", [("disk", "s3"), ("s3", "disk")])
def test_absent_is_not_found_only_when_s3_has_answered(tmp_path, order):
    s3, rig = MemoryS3(), Rig(tmp_path, (2,))
    with_s3(rig, s3).order = order
    with pytest.raises(NotFound):
        result_of(read(rig.store, Digest.of(b"absent")))
    rig.put(b"there")
    s3.refusing = True
    assert rig.get(b"absent").status == 503
    assert rig.get(b"there").status == 200


@pytest.mark.parametrize(
    ("status", "code", "meaning"),
    [
        (404, "NoSuchKey", Meaning.ABSENT),
        (403, "InvalidObjectState", Meaning.SAMPLE),
        (403, "AccessDenied", Meaning.SAMPLE),
        (400, "InvalidRequest", Meaning.SAMPLE),
        (400, "KMS.DisabledException", Meaning.SAMPLE),
        (405, "MethodNotAllowed", Meaning.SAMPLE),
        (451, "UnavailableForLegalReasons", Meaning.SAMPLE),
        # A 404 that says nothing of the sample is never taken for its absence.
        (404, "", Meaning.ENGINE),
        (404, "404", Meaning.ENGINE),
        (404, "NoSuchBucket", Meaning.ENGINE),
        (200, "NoSuchKey", Meaning.ENGINE),
        (503, "NoSuchKey", Meaning.ENGINE),
        (301, "PermanentRedirect", Meaning.ENGINE),
        (400, "AuthorizationHeaderMalformed", Meaning.ENGINE),
        (401, "Unauthorized", Meaning.ENGINE),
        (403, "", Meaning.ENGINE),
        (403, "SignatureDoesNotMatch", Meaning.ENGINE),
        (403, "InvalidAccessKeyId", Meaning.ENGINE),
        (403, "RequestTimeTooSkewed", Meaning.ENGINE),
        (429, "SlowDown", Meaning.ENGINE),
        (500, "InternalError", Meaning.ENGINE),
        (503, "SlowDown", Meaning.ENGINE),
        (None, "unknown", Meaning.ENGINE),
    ],
)
def test_what_a_refusal_is_about(status, code, meaning):
    assert meaning_of(status, code) is meaning


def refusal(code):
    return b"<Error><Code>%s</Code></Error>" % code


@pytest.mark.parametrize(
    "answer",
    [
        (403, refusal(b"InvalidObjectState")),
        (403, refusal(b"AccessDenied")),
        (403, b""),
        (400, refusal(b"InvalidRequest")),
        (404, b"not here"),
        (500, refusal(b"InternalError")),
        (200, b"of a length that is not said", {"Content-Length": None}),
        (206, b"which nobody asked for"),
        (302, b"elsewhere"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:40]!r}",
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_sample_that_cannot_be_had_keeps_no_other_away(tmp_path, answer, method):
    rig, s3 = Rig(tmp_path, (2,)), filled([b"odd", b"another"])
    with_s3(rig, s3)
    s3.answers[Digest.of(b"odd").s3_key] = answer
    for _ in range(20):
        response = rig.get(b"odd", method=method)
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
    assert rig.get(b"another").body == b"another"
    assert rig.get(b"nobody has it").status == 404
    assert rig.request("GET", "/status").status == 200


def test_a_refused_sample_is_no_reason_to_probe(tmp_path):
    rig, s3 = Rig(tmp_path, (2,)), filled([b"odd"])
    with_s3(rig, s3)
    probes = s3.probes
    s3.answers[Digest.of(b"odd").s3_key] = (403, refusal(b"InvalidObjectState"))
    for _ in range(20):
        assert rig.get(b"odd").status == 503
    assert s3.probes == probes


def test_a_probe_that_is_asked_for_while_one_is_under_way_comes_after_it():
    """The one under way may be about a trouble that is over: nobody waits 15 s for the next."""
    s3, clock = MemoryS3(), Clock()
    bucket = s3.bucket_over(clock)
    s3.waiting = []
    outcomes = start(bucket.probe())
    assert result_of(bucket.probe()) is False  # said by the first, once it knows
    s3.waiting[0].errback(OSError("refused"))
    assert bucket.fault is not None
    s3.waiting[1].callback(MemoryResponse(200, b""))
    assert outcomes == [True]
    assert bucket.fault is None
    assert len(s3.waiting) == 2


def test_what_fails_for_all_makes_s3_unavailable(tmp_path):
    rig, s3 = Rig(tmp_path, (2,)), filled([b"one"])
    with_s3(rig, s3)
    s3.refusing = True
    for _ in range(3):
        assert rig.get(b"one").status == 503
    assert "refused" in rig.request("GET", "/status").text
    s3.calls.clear()
    assert rig.get(b"one").status == 503
    assert s3.calls == []


@pytest.mark.parametrize(
    ("modified", "said"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"),
        *(
            (odd, "Thu, 01 Jan 1970 00:00:00 GMT")
            for odd in (None, "", "today", "Sun, 06 Nov 10000 08:49:37 GMT", "0", "\xff" * 100)
        ),
        ("Sun, 06 Nov 1904 08:49:37 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ],
)
def test_any_last_modified_of_an_engine(tmp_path, modified, said):
    rig, s3 = Rig(tmp_path, (2,)), MemoryS3()
    rig.clock.advance(10**9)
    with_s3(rig, s3)
    s3.answers[Digest.of(b"odd").s3_key] = (200, b"odd", {"Last-Modified": modified})
    for method in ("HEAD", "GET"):
        response = rig.get(b"odd", method=method)
        assert (response.status, response.headers["last-modified"]) == (200, said)
