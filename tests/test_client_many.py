"""Many files into a Stor, and out of it: what is sent, what is told, and what is left behind."""

import errno
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from stor.client import (
    ContentMismatch,
    GivenUp,
    MemoryClient,
    NotStored,
    Refused,
    Stopped,
    Unauthorized,
)
from stor.client.files import walk
from stor.client.get import BadTemplate, Get, Template
from stor.client.missing import Missing
from stor.client.put import Put
from stor.digest import Digest
from stor.http.batch import header
from tests.support.http import cuts
from tests.support.pools import InlinePool

BIG = 1024 * 1024 + 1


def done(coroutine):
    """What a coroutine that does not wait returns or raises."""
    outcomes = []
    Deferred.fromCoroutine(coroutine).addBoth(outcomes.append)
    (outcome,) = outcomes
    if hasattr(outcome, "raiseException"):
        outcome.raiseException()
    return outcome


class FakeStor(MemoryClient):
    """Remembers what it was asked, and does at an upload or a download what a test wants."""

    def __init__(self, *, on_send=None, on_receive=None, unknown=()):
        super().__init__()
        self.sent, self.asked, self.stopped = [], [], False
        self._on_send = on_send or (lambda digest: None)
        self.on_receive = on_receive
        self.unknown = set(unknown)

    async def send(self, digest, body):
        if self.stopped:
            raise Stopped("stopped")
        self.sent.append(digest)
        self._on_send(digest)
        return await super().send(digest, body)

    async def receive(self, digest, sink):
        if self.stopped:
            raise Stopped("stopped")
        if self.on_receive is not None:
            await self.on_receive(digest, sink)
        await super().receive(digest, sink)

    async def missing(self, digests):
        self.asked.append(len(digests))
        states = await super().missing(digests)
        return bytes(
            ord("?") if digest in self.unknown else state
            for digest, state in zip(digests, states, strict=True)
        )

    def stop(self):
        self.stopped = True


def put(client, *paths):
    """Put files; what is told of them."""
    told = []
    work = Put(client, InlinePool(), InlinePool(), told.append)
    done(work.run(walk(map(str, paths))))
    return told


def states(told):
    return Counter(outcome.state for outcome in told)


class TestPut:
    @pytest.fixture
    def tree(self, tmp_path):
        contents = {f"file{n}": os.urandom(n * 1000) for n in range(20)}
        contents["big"] = os.urandom(BIG)
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    def test_stores_all_of_a_directory_and_tells_each_name(self, tree):
        client = FakeStor()
        told = put(client, tree)
        assert states(told) == {"stored": 21}
        for outcome in told:
            content = Path(outcome.path).read_bytes()
            assert (outcome.sha, outcome.size) == (str(Digest.of(content)), len(content))
            assert client.samples[Digest.of(content)] == content

    def test_sends_nothing_that_is_stored(self, tree):
        client = FakeStor()
        put(client, tree)
        client.sent.clear()
        assert states(put(client, tree)) == {"present": 21}
        assert client.sent == []
        assert client.asked == [21, 21]

    def test_sends_what_may_be_stored(self, tree):
        client = FakeStor(unknown=[Digest.of(b"")])
        client.samples[Digest.of(b"")] = b""
        assert states(put(client, tree / "file0")) == {"present": 1}
        assert client.sent == [Digest.of(b"")]

    @pytest.mark.parametrize(("count", "waits"), [(1, 0), (499, 0), (500, 1), (1200, 2)])
    def test_waits_for_what_is_unknown_no_longer_than_to_send_it_takes(
        self, tmp_path, count, waits
    ):
        for n in range(count):
            (tmp_path / f"{n}").write_bytes(b"%d" % n)
        contents = [b"%d" % n for n in range(count)]
        client = FakeStor(unknown=map(Digest.of, contents))
        client.samples.update((Digest.of(content), content) for content in contents)
        assert states(put(client, tmp_path)) == {"present": count}
        assert len(client.asked) == 1 + waits
        assert len(client.sent) == count

    def test_what_becomes_known_meanwhile_is_not_sent(self, tmp_path):
        contents = [b"%d" % n for n in range(600)]
        for content in contents:
            (tmp_path / content.decode()).write_bytes(content)

        class Learning(FakeStor):
            async def wait(self, seconds):
                self.unknown.clear()

        client = Learning(unknown=map(Digest.of, contents))
        client.samples.update((Digest.of(content), content) for content in contents[:599])
        assert states(put(client, tmp_path)) == {"present": 599, "stored": 1}
        assert client.sent == [Digest.of(contents[599])]

    def test_sends_equal_files_once(self, tmp_path):
        for n in range(10):
            (tmp_path / f"{n}").write_bytes(b"the same")
        client = FakeStor()
        assert states(put(client, tmp_path)) == {"stored": 1, "present": 9}
        assert len(client.sent) == 1

    def test_names_what_it_passes_over_and_stores_the_rest(self, tree):
        os.mkfifo(tree / "fifo")
        (tree / "dangling").symlink_to("nothing")
        told = put(FakeStor(), tree)
        assert states(told) == {"stored": 21, "failed": 2}
        failed = {os.path.basename(o.path): o.error for o in told if o.state == "failed"}
        assert failed == {
            "fifo": "a FIFO, not a file",
            "dangling": "No such file or directory",
        }

    def test_a_wrong_password_is_tried_once(self, tree):
        """Also where the server takes its time to say so."""
        answer = Deferred()

        class Slow(FakeStor):
            async def send(self, digest, body):
                self.sent.append(digest)
                await answer
                raise Unauthorized("wrong user or password")

        client, failures = Slow(), []
        work = Put(client, InlinePool(), InlinePool(), lambda outcome: None)
        Deferred.fromCoroutine(work.run(walk([str(tree)]))).addErrback(failures.append)
        answer.callback(None)
        assert failures[0].check(Unauthorized)
        assert len(client.sent) == 1

    @pytest.mark.parametrize("size", [5, BIG])
    def test_a_file_that_changes_once_is_stored_as_it_is_then(self, tmp_path, size):
        path, after = tmp_path / "file", os.urandom(size + 1)
        path.write_bytes(os.urandom(size))

        def change(digest):
            if len(client.sent) == 1:
                path.write_bytes(after)
                raise ContentMismatch("412: content mismatch")

        client = FakeStor(on_send=change)
        (outcome,) = put(client, path)
        assert (outcome.state, outcome.sha) == ("stored", str(Digest.of(after)))
        assert list(client.samples.values()) == [after]

    def test_a_large_file_that_is_written_to_after_its_last_byte_was_read_is_sent_again(
        self, tmp_path
    ):
        path = tmp_path / "file"
        path.write_bytes(os.urandom(BIG))

        class Writes(FakeStor):
            async def send(self, digest, body):
                new = await super().send(digest, body)
                if len(self.sent) == 1:
                    path.write_bytes(b"after")
                return new

        (outcome,) = put(Writes(), path)
        assert (outcome.state, outcome.sha) == ("stored", str(Digest.of(b"after")))

    @pytest.mark.parametrize("size", [5, BIG])
    def test_a_file_that_always_changes_is_named(self, tmp_path, size):
        path = tmp_path / "file"
        path.write_bytes(os.urandom(size))

        def change(digest):
            path.write_bytes(os.urandom(size))
            raise ContentMismatch("412: content mismatch")

        client = FakeStor(on_send=change)
        (outcome,) = put(client, path)
        assert (outcome.state, outcome.path) == ("failed", str(path))
        assert outcome.error == "it changes while it is read; tried 3 times"
        assert len(client.sent) == 3

    def test_a_server_that_takes_the_file_for_another_is_named(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"x")

        def refuse(digest):
            raise ContentMismatch("412: content mismatch")

        (outcome,) = put(FakeStor(on_send=refuse), path)
        assert (outcome.state, outcome.error) == ("failed", "412: content mismatch")

    def test_a_file_that_vanishes_is_named_and_its_equal_is_sent(self, tmp_path):
        first, second, third = (tmp_path / name for name in "abc")
        for path in (first, second):
            path.write_bytes(b"equal")
        third.write_bytes(b"")  # the smallest goes first

        def vanish(digest):
            if digest == Digest.of(b""):
                first.unlink()

        told = put(FakeStor(on_send=vanish), first, second, third)
        assert states(told) == {"failed": 1, "stored": 2}
        assert [o.path for o in told if o.state == "failed"] == [str(first)]

    def test_one_that_the_server_refuses_does_not_end_the_others(self, tree):
        def refuse(digest):
            if digest == Digest.of(b""):
                raise Refused("507: no room")

        told = put(FakeStor(on_send=refuse), tree)
        assert states(told) == {"stored": 20, "failed": 1}

    def test_when_nothing_helps_no_more_is_sent(self, tree):
        def give_up(digest):
            if len(client.sent) == 3:
                raise GivenUp("connection refused")

        client = FakeStor(on_send=give_up)
        with pytest.raises(GivenUp, match="connection refused"):
            put(client, tree)
        assert len(client.sent) == 3


def get(client, directory, names, template="SHA"):
    """Get samples; what is told of them."""
    told = []
    pool = InlinePool()
    work = Get(client, pool, pool, told.append, str(directory), Template(template))
    done(work.run(map(str, names)))
    return told


def files_below(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


class TestGet:
    @pytest.fixture
    def client(self):
        client = FakeStor()
        for n in range(20):
            done(client.put(bytes([n]) * n * 1000))
        return client

    @pytest.mark.parametrize("template", ["SHA", "aa/bb/SHA", "aa/bb/cc/SHA.dat", "x/SHA"])
    def test_each_sample_has_the_name_that_was_asked_for(self, client, tmp_path, template):
        told = get(client, tmp_path, client.samples, template)
        assert states(told) == {"fetched": 20}
        for digest, content in client.samples.items():
            sha = str(digest)
            pairs = {"aa": sha[:2], "bb": sha[2:4], "cc": sha[4:6]}
            parts = template.split("/")
            name = "/".join(pairs.get(part, part.replace("SHA", sha)) for part in parts)
            assert (tmp_path / name).read_bytes() == content
        assert len(files_below(tmp_path)) == 20

    @pytest.mark.parametrize(
        "text", ["", "x", "SHA/", "/SHA", "../SHA", "a/../SHA", "SHA/x", "./SHA"]
    )
    def test_a_template_that_names_no_file_below_is_refused(self, text):
        with pytest.raises(BadTemplate):
            Template(text)

    def test_what_is_there_and_right_is_not_fetched(self, client, tmp_path):
        get(client, tmp_path, client.samples)
        asked = []
        again = FakeStor(on_receive=lambda digest, sink: asked.append(digest))
        assert states(get(again, tmp_path, client.samples)) == {"present": 20}
        assert asked == []

    @pytest.mark.parametrize("there", [b"", b"damaged", b"x" * 100_000])
    def test_what_is_there_and_wrong_is_replaced(self, client, tmp_path, there):
        digest, content = list(client.samples.items())[5]
        (tmp_path / str(digest)).write_bytes(there)
        assert states(get(client, tmp_path, [digest])) == {"fetched": 1}
        assert (tmp_path / str(digest)).read_bytes() == content

    def test_lines_of_sha256sum_are_a_list(self, client, tmp_path):
        digest = next(iter(client.samples))
        told = get(client, tmp_path, [f"{digest}  a name", f"\\{digest}  new\\nline"])
        assert states(told) == {"fetched": 1, "present": 1}

    def test_what_is_not_stored_or_no_sha_is_named(self, client, tmp_path):
        told = get(client, tmp_path, ["0" * 64, "xyz", next(iter(client.samples))])
        assert states(told) == {"failed": 2, "fetched": 1}
        errors = {outcome.sha: outcome.error for outcome in told if outcome.error}
        assert "not found" in errors["0" * 64]
        assert "64 hexadecimal digits" in errors["xyz"]

    @pytest.mark.parametrize(
        "error", [Refused("cut"), ContentMismatch("not it"), NotStored("404")], ids=str
    )
    def test_what_ends_half_way_leaves_nothing(self, client, tmp_path, error):
        async def half(digest, sink):
            await sink.begin()
            await sink.add(b"half of it", last=False)
            raise error

        client.on_receive = half
        (outcome,) = get(client, tmp_path, list(client.samples)[:1])
        assert (outcome.state, outcome.error) == ("failed", str(error))
        assert files_below(tmp_path) == []

    def test_what_is_not_the_sample_gets_no_name(self, client, tmp_path):
        async def wrong(digest, sink):
            await sink.begin()
            await sink.add(b"something else", last=True)

        client.on_receive = wrong
        (outcome,) = get(client, tmp_path, list(client.samples)[:1])
        assert outcome.state == "failed"
        assert files_below(tmp_path) == []

    def test_what_begins_anew_is_whole(self, client, tmp_path):
        async def twice(digest, sink):
            await sink.begin()
            await sink.add(b"half of it", last=False)

        client.on_receive = twice
        digest, content = list(client.samples.items())[3]
        assert states(get(client, tmp_path, [digest])) == {"fetched": 1}
        assert (tmp_path / str(digest)).read_bytes() == content

    @pytest.mark.parametrize(
        "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get
    )
    def test_a_full_disk_ends_it_with_one_line(self, client, tmp_path, code):
        attempts = []

        async def full(digest, sink):
            attempts.append(digest)
            await sink.begin()
            await sink.add(b"half of it", last=False)
            raise OSError(code, os.strerror(code))

        client.on_receive = full
        with pytest.raises(GivenUp, match=os.strerror(code)):
            get(client, tmp_path, client.samples)
        assert len(attempts) == 1
        assert files_below(tmp_path) == []

    def test_a_place_that_is_taken_is_named(self, client, tmp_path):
        first, second = list(client.samples)[1:3]
        (tmp_path / str(first)).mkdir()
        told = get(client, tmp_path, [first, second])
        assert states(told) == {"failed": 1, "fetched": 1}
        assert files_below(tmp_path) == [tmp_path / str(second)]


class Batches(FakeStor):
    """Answers with the TAR that `make` gives for what was asked; then `after` happens."""

    def __init__(self, make, after=lambda: None, pieces=1):
        super().__init__()
        self.received = []
        self._make, self._after, self._pieces = make, after, pieces

    async def batch(self, digests, sink):
        body = self._make(self, digests)
        for piece in cuts(body, self._pieces, random.Random(self._pieces)):
            await sink.add(piece, last=False)
        self._after()
        return True

    async def receive(self, digest, sink):
        self.received.append((digest, sink.received_bytes))
        await super().receive(digest, sink)


def tar(client, digests, change=lambda digest, content: content):
    """As `POST /batch` makes it; `change` says what comes for a sample."""
    body, missing = b"", b""
    for digest in digests:
        content = client.samples.get(digest)
        if content is None:
            missing += b"missing %s\n" % str(digest).encode()
            continue
        content = change(digest, content)
        body += header(str(digest), len(content), 0) + content + bytes(-len(content) % 512)
    body += header("missing.txt", len(missing), 0) + missing + bytes(-len(missing) % 512)
    return body + bytes(1024)


NO_TARS = {
    "nothing": b"",
    "zeros": bytes(5000),
    "text": b"no TAR" * 1000,
    "a header alone": header("0" * 64, 100, 0),
    "another name": header("name", 3, 0) + b"abc" + bytes(509),
    "a path": header("../../etc/passwd", 3, 0) + b"abc" + bytes(509),
    "one that nobody has asked for": header("f" * 64, 3, 0) + b"abc" + bytes(509 + 1024),
    "a list that says too much": header("missing.txt", 73, 0)
    + b"missing "
    + b"f" * 64
    + b"\n"
    + bytes(512 - 73 + 1024),
}


class TestGetTogether:
    @pytest.fixture
    def contents(self):
        return [random.Random(n).randbytes(n * 700) for n in range(20)]

    def stored(self, client, contents):
        for content in contents:
            done(client.put(content))
        return client

    @pytest.mark.parametrize("pieces", [1, 2, 17, 400])
    def test_what_comes_in_one_answer_is_asked_for_once(self, contents, tmp_path, pieces):
        client = self.stored(Batches(tar, pieces=pieces), contents)
        asked = [*client.samples, "0" * 64]
        told = get(client, tmp_path, asked)
        assert states(told) == {"fetched": 20, "failed": 1}
        assert {path.name for path in files_below(tmp_path)} == set(map(str, client.samples))
        for digest, content in client.samples.items():
            assert (tmp_path / str(digest)).read_bytes() == content
        # One that is left over has no others to come with.
        assert len(client.received) <= 1

    def test_one_that_is_asked_for_more_than_once_is_told_of_each_time(self, contents, tmp_path):
        client = self.stored(Batches(tar), contents)
        told = get(client, tmp_path, list(client.samples)[:2] * 3)
        assert states(told) == {"fetched": 2, "present": 4}

    def test_what_is_damaged_on_the_way_is_fetched_by_itself(self, contents, tmp_path):
        def damage(digest, content):
            return content[:-1] + b"!" if content else content

        client = self.stored(Batches(lambda stor, digests: tar(stor, digests, damage)), contents)
        assert states(get(client, tmp_path, client.samples)) == {"fetched": 20}
        for digest, content in client.samples.items():
            assert (tmp_path / str(digest)).read_bytes() == content

    def test_what_is_cut_goes_on_where_it_was_cut(self, tmp_path):
        contents = [b"first", b"x" * 100_000]

        def half(stor, digests):
            body = tar(stor, sorted(digests, key=lambda d: len(stor.samples[d])))
            return body[:50_000]

        client = self.stored(Batches(half), contents)
        assert states(get(client, tmp_path, client.samples)) == {"fetched": 2}
        ((digest, received),) = client.received
        assert client.samples[digest] == contents[1]
        assert received > 40_000

    @pytest.mark.parametrize("body", NO_TARS.values(), ids=NO_TARS)
    def test_after_an_answer_that_is_none_each_is_fetched_by_itself(self, contents, tmp_path, body):
        client = self.stored(Batches(lambda stor, digests: body), contents)
        target = tmp_path / "got"
        assert states(get(client, target, client.samples)) == {"fetched": 20}
        assert {path.name for path in files_below(tmp_path)} == set(map(str, client.samples))

    def test_a_full_disk_ends_it_with_one_line(self, contents, tmp_path):
        def full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        client = self.stored(Batches(lambda stor, d: tar(stor, d)[:3000], full), contents)
        with pytest.raises(GivenUp, match="No space left on device"):
            get(client, tmp_path, client.samples)
        for path in files_below(tmp_path):
            assert path.name == str(Digest.of(path.read_bytes()))


class TestMissing:
    def ask(self, client, lines):
        told = []
        done(Missing(client, InlinePool(), lambda *said: told.append(said)).run(lines))
        return told

    def test_lines_pass_as_they_are_in_their_order(self):
        stored, unknown = Digest.of(b"stored"), Digest.of(b"unknown")
        client = FakeStor(unknown=[unknown])
        client.samples[stored] = b"stored"
        lines = [
            f"{Digest.of(b'1')}  a name",
            f"{stored}  another",
            "no sha",
            str(unknown),
            f"\\{Digest.of(b'2')}  new\\nline",
            f"{Digest.of(b'1')}".upper(),
        ]
        assert self.ask(client, lines) == [
            ("missing", lines[0]),
            ("malformed", lines[2]),
            ("unknown", lines[3]),
            ("missing", lines[4]),
            ("missing", lines[5]),
        ]

    @pytest.mark.parametrize("count", [0, 1, 10_000, 10_001, 25_000])
    def test_a_long_list_is_asked_in_ten_thousands(self, count):
        client = FakeStor()
        lines = [f"{n:064x}" for n in range(count)]
        assert self.ask(client, lines) == [("missing", line) for line in lines]
        assert sum(client.asked) == count
        assert all(asked <= 10_000 for asked in client.asked)
