"""Clients as they are: curl in its common forms, treq, and Python's own."""

import email.utils
import hashlib
import http.client
import json
import os
import subprocess
from pathlib import Path

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.web.client import HTTPConnectionPool

from tests.integration.curl import curl
from tests.integration.process import MIB, environment, sample_path, sha_of
from tests.support.rig import AUTHORIZATION, PASSWORD, USER

#: How curl sends a file; `{file}` is its path. `-` is also what it has on standard input.
UPLOADS = {
    "data-binary": ["--data-binary", "@{file}"],
    "data-binary-with-post": ["-X", "POST", "--data-binary", "@{file}"],
    "data-binary-from-stdin": ["--data-binary", "@-"],
    "upload-file": ["-T", "{file}"],
    "chunked-from-stdin": ["-T", "-"],
    "chunked-as-it-comes": ["-T", "."],
    "chunked-form": ["-H", "Transfer-Encoding: chunked", "--data-binary", "@{file}"],
    "without-expect": ["-H", "Expect:", "-T", "{file}"],
    "form-without-expect": ["-H", "Expect:", "--data-binary", "@{file}"],
    "with-expect": ["-H", "Expect: 100-continue", "--expect100-timeout", "30", "-T", "{file}"],
    "without-content-type": ["-H", "Content-Type:", "--data-binary", "@{file}"],
    "http1.0": ["--http1.0", "-T", "{file}"],
    "http1.0-form": ["--http1.0", "--data-binary", "@{file}"],
    "http2-upgrade": ["--http2", "-T", "{file}"],
    "compressed": ["--compressed", "-T", "{file}"],
    "anyauth": ["--anyauth", "-T", "{file}"],
}

BIG_UPLOADS = ("data-binary", "upload-file", "chunked-from-stdin")

SIZES = {"empty": 0, "small": 5, "large": 3_000_001}


def upload(form, path, url, user=f"{USER}:{PASSWORD}"):
    """Send a file as the `form` of curl does."""
    arguments = [argument.format(file=path) for argument in UPLOADS[form]]
    with open(path, "rb") as file:
        return curl("-u", user, *arguments, url, stdin=file)


def sha_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(stor, sha):
    """Take a sample off the disks, so that it can be stored anew."""
    for path in stor.copies(sha):
        path.unlink()


@pytest.fixture
def file(tmp_path):
    """A file of random bytes to send."""
    path = tmp_path / "sent"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.fixture(scope="module")
def sample(stor):
    """A sample that is stored: its content."""
    content = os.urandom(1_000_000)
    assert stor.put(content).status == 201
    return content


class TestCurlStores:
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    @pytest.mark.parametrize("form", UPLOADS)
    def test_in_every_form(self, stor, tmp_path, form, size):
        path = tmp_path / "file"
        path.write_bytes(os.urandom(size))
        sha = sha_of_file(path)
        remove(stor, sha)

        first = upload(form, path, stor.url(sha))
        assert (first.status, first.errors) == (0, [])
        assert first.code == 201
        paths = json.loads(first.body)
        assert sorted(map(Path, paths)) == stor.copies(sha)
        assert len(paths) == 2
        assert [sha_of_file(path) for path in paths] == [sha, sha]
        assert first.seconds < 5

        again = upload(form, path, stor.url(sha))
        assert (again.status, again.code, json.loads(again.body)) == (0, 200, paths)
        assert curl(stor.url(sha)).body == path.read_bytes()

    @pytest.mark.parametrize("form", BIG_UPLOADS)
    def test_a_big_file(self, stor, big_file, form):
        ended = upload(form, big_file.path, stor.url(big_file.sha))
        assert (ended.status, ended.code, ended.errors) == (0, 201, [])
        copies = stor.copies(big_file.sha)
        assert len(copies) == 2
        assert [sha_of_file(path) for path in copies] == [big_file.sha] * 2
        remove(stor, big_file.sha)

    def test_a_short_text_on_the_command_line(self, stor):
        content = b"some=text&that=looks%20like+a+form"
        ended = curl("-u", "writer:writer_pass", "-d", content.decode(), stor.url(sha_of(content)))
        assert ended.code == 201
        assert curl(stor.url(sha_of(content))).body == content

    def test_with_the_credentials_in_the_url(self, stor, file):
        sha = sha_of_file(file)
        url = stor.url(sha, f"{USER}:{PASSWORD}@")
        ended = curl("-X", "POST", "--data-binary", f"@{file}", url)
        assert ended.code == 201

    @pytest.mark.parametrize("variant", ["{upper}", "{sha}/", "{upper}/", "{sha}?a=b", "{sha}/?"])
    def test_under_every_way_to_write_its_name(self, stor, file, variant):
        sha = sha_of_file(file)
        name = variant.format(sha=sha, upper=sha.upper())
        assert upload("data-binary", file, stor.url(name)).code == 201
        assert upload("data-binary", file, stor.url(sha)).code == 200
        assert curl(stor.url(name)).body == file.read_bytes()

    def test_nothing_at_all_is_the_empty_sample(self, stor):
        sha = sha_of(b"")
        remove(stor, sha)
        ended = curl("-u", "writer:writer_pass", "-X", "POST", stor.url(sha))
        assert ended.code == 201
        assert [path.stat().st_size for path in stor.copies(sha)] == [0, 0]

    def test_several_files_on_one_connection(self, stor, tmp_path):
        arguments = []
        for n in range(5):
            path = tmp_path / f"file{n}"
            path.write_bytes(os.urandom(2_000_000))
            arguments += ["-u", "writer:writer_pass", "-T", path]
            arguments += [stor.url(sha_of_file(path)), "-w", "\n%{http_code} %{num_connects}\n"]
            arguments += ["--next"]
        ended = subprocess.run(
            ["curl", "-q", "-sS", *map(str, arguments[:-1])],
            env=environment(),
            capture_output=True,
            timeout=30,
            check=True,
        )
        told = [line for line in ended.stdout.decode().splitlines() if line[:1].isdigit()]
        assert told == ["201 1", "201 0", "201 0", "201 0", "201 0"]

    def test_a_multipart_form_is_not_the_file(self, stor, file):
        sha = sha_of_file(file)
        ended = curl("-u", "writer:writer_pass", "-F", f"file=@{file}", stor.url(sha))
        assert ended.code == 415
        assert b"curl -T FILE" in ended.body
        assert stor.copies(sha) == []


class TestCurlIsRefused:
    @pytest.mark.parametrize(
        ("arguments", "path", "code"),
        [
            (["--data-binary", "@{file}"], "", 400),
            (["-T", "{file}"], "directory/", 400),
            (["-T", "{file}"], "", 412),  # curl puts the file's name after the slash
        ],
    )
    def test_where_it_names_no_sha_and_told_how_to_store(
        self, stor, big_file, arguments, path, code
    ):
        given = [argument.format(file=big_file.path) for argument in arguments]
        ended = curl("-u", f"{USER}:{PASSWORD}", *given, stor.url(path))
        assert (ended.code, ended.uploaded_bytes) == (code, 0)
        assert b"curl -u USER -T FILE URL/$(sha256sum FILE | cut -c 1-64)\n" in ended.body

    @pytest.mark.parametrize(
        ("arguments", "code", "advice"),
        [
            (["-C", "1000", "-T", "{file}"], 400, b"send the whole file"),
            (["-F", "file=@{file}"], 415, b"curl -T FILE"),
            (["-H", "Content-Encoding: gzip", "-T", "{file}"], 415, b"as it is"),
        ],
    )
    def test_before_it_sends_what_is_not_the_file(self, stor, big_file, arguments, code, advice):
        given = [argument.format(file=big_file.path) for argument in arguments]
        ended = curl("-u", f"{USER}:{PASSWORD}", *given, stor.url(big_file.sha))
        assert (ended.code, ended.uploaded_bytes) == (code, 0)
        assert advice in ended.body

    @pytest.mark.parametrize("user", ["writer:wrong", "writer:", "other:writer_pass", ":"])
    @pytest.mark.parametrize("form", ["data-binary", "upload-file", "chunked-from-stdin"])
    def test_with_wrong_credentials_before_it_sends_anything(self, stor, big_file, form, user):
        ended = upload(form, big_file.path, stor.url(big_file.sha), user)
        assert (ended.code, ended.uploaded_bytes) == (401, 0)
        assert ended.seconds < 1
        assert stor.copies(big_file.sha) == []

    @pytest.mark.parametrize("form", UPLOADS)
    def test_with_a_wrong_password(self, stor, file, form):
        sha = sha_of_file(file)
        ended = upload(form, file, stor.url(sha), "writer:wrong")
        assert (ended.status, ended.code) == (0, 401)
        assert ended.body.count(b"\n") == 1
        assert stor.copies(sha) == []

    @pytest.mark.parametrize("form", UPLOADS)
    def test_with_a_malformed_sha(self, stor, file, form):
        ended = upload(form, file, stor.url("0" * 63))
        assert (ended.status, ended.code) == (0, 412)

    @pytest.mark.parametrize("form", UPLOADS)
    def test_with_another_content(self, stor, file, form):
        sha = sha_of(b"something else")
        ended = upload(form, file, stor.url(sha))
        assert (ended.status, ended.code) == (0, 412)
        assert sha in ended.body.decode()
        assert sha_of_file(file) in ended.body.decode()
        assert stor.copies(sha) == []

    def test_a_big_file_that_is_stored_is_not_sent(self, stor, big_file):
        for root in stor.roots[:2]:
            path = root / sample_path(big_file.sha)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(big_file.path, path)
        for form in ("data-binary", "upload-file"):
            ended = upload(form, big_file.path, stor.url(big_file.sha))
            assert (ended.code, ended.uploaded_bytes) == (200, 0)
            assert ended.seconds < 1
        without = upload("without-expect", big_file.path, stor.url(big_file.sha))
        assert (without.status, without.code) == (0, 200)
        remove(stor, big_file.sha)


class TestCurlFetches:
    @pytest.mark.parametrize("size", [0, 1, 65_536, 262_144, 262_145, 3_000_001])
    @pytest.mark.parametrize(
        "options", [[], ["--compressed"], ["--http1.0"], ["--http2"], ["-u", "writer:wrong"]]
    )
    def test_exactly(self, stor, options, size):
        content = bytes(size)
        assert stor.put(content).status in (200, 201)
        sha = sha_of(content)
        ended = curl(*options, stor.url(sha))
        assert (ended.status, ended.code, ended.errors) == (0, 200, [])
        assert ended.body == content

    def test_a_big_file(self, stor, big_file, tmp_path):
        for root in stor.roots[2:]:
            path = root / sample_path(big_file.sha)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(big_file.path, path)
        out = tmp_path / "out"
        assert curl("-o", out, stor.url(big_file.sha)).code == 200
        assert sha_of_file(out) == big_file.sha
        os.truncate(out, 77_777_777)
        assert curl("-C", "-", "-o", out, stor.url(big_file.sha)).code == 206
        assert sha_of_file(out) == big_file.sha
        remove(stor, big_file.sha)

    def test_as_through_a_proxy(self, stor, sample):
        ended = curl("-x", stor.url(), f"http://stor.example/{sha_of(sample)}")
        assert ended.body == sample

    def test_the_head_alone(self, stor, sample):
        ended = curl("-I", stor.url(sha_of(sample)))
        assert (ended.status, ended.code) == (0, 200)
        lines = ended.body.decode().lower().splitlines()
        assert f"content-length: {len(sample)}" in lines
        assert "accept-ranges: bytes" in lines

    @pytest.mark.parametrize(
        ("wanted", "begin", "end"),
        [
            ("0-99", 0, 100),
            ("0-0", 0, 1),
            ("500000-", 500_000, None),
            ("-100", -100, None),
            ("999999-", 999_999, None),
            ("1000-2000000", 1000, None),
            ("-5000000", 0, None),
        ],
    )
    def test_a_range(self, stor, sample, wanted, begin, end):
        ended = curl("-r", wanted, stor.url(sha_of(sample)))
        assert (ended.status, ended.code) == (0, 206)
        assert ended.body == sample[begin:end]

    def test_a_range_beyond_the_end(self, stor, sample):
        assert curl("-r", "1000000-", stor.url(sha_of(sample))).code == 416

    @pytest.mark.parametrize("have_bytes", [0, 1, 262_144, 524_288, 999_999, 1_000_000])
    def test_what_is_missing(self, stor, sample, tmp_path, have_bytes):
        out = tmp_path / "out"
        out.write_bytes(sample[:have_bytes])
        ended = curl("-C", "-", "-o", out, stor.url(sha_of(sample)))
        assert (ended.status, ended.errors) == (0, [])
        assert out.read_bytes() == sample

    def test_what_is_newer(self, stor, sample, tmp_path):
        url, out = stor.url(sha_of(sample)), tmp_path / "out"
        assert curl("-R", "-o", out, url).code == 200
        modified = out.stat().st_mtime
        assert modified == int(stor.copies(sha_of(sample))[0].stat().st_mtime)
        assert curl("-z", out, url).code == 304
        for seconds, code in ((-1, 200), (0, 304), (3600, 304)):
            date = email.utils.formatdate(modified + seconds, usegmt=True)
            ended = curl("-z", date, url)
            assert (ended.status, ended.code) == (0, code)
            assert ended.body == (sample if code == 200 else b"")

    def test_what_has_another_etag(self, stor, sample, tmp_path):
        url, tag = stor.url(sha_of(sample)), tmp_path / "etag"
        assert curl("--etag-save", tag, url).code == 200
        assert curl("--etag-compare", tag, url).code == 304

    @pytest.mark.parametrize("options", [[], ["-I"], ["-r", "0-9"], ["--http1.0"]])
    def test_nothing_where_there_is_nothing(self, stor, options):
        ended = curl("-f", *options, stor.url(sha_of(b"nobody has this")))
        assert (ended.status, ended.code) == (22, 404)


class TestOthers:
    @pytest_twisted.ensureDeferred
    async def test_treq_puts_and_gets_bytes(self, stor):
        content = os.urandom(700_000)
        url, pool = stor.url(sha_of(content)), HTTPConnectionPool(reactor)
        options = {"auth": (USER, PASSWORD), "pool": pool, "timeout": 20}
        for method, code in ((treq.put, 201), (treq.post, 200)):
            answer = await method(url, data=content, **options)
            assert answer.code == code
            assert len(await treq.json_content(answer)) == 2
        answer = await treq.get(url, pool=pool, timeout=20)
        assert answer.length == len(content)
        assert await treq.content(answer) == content
        await pool.closeCachedConnections()

    @pytest_twisted.ensureDeferred
    async def test_treq_puts_and_gets_a_file_as_a_stream(self, stor, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(os.urandom(20_000_000))
        sha = sha_of_file(path)
        pool = HTTPConnectionPool(reactor, persistent=False)
        options = {"pool": pool, "timeout": 30}
        with path.open("rb") as file:
            answer = await treq.put(stor.url(sha), data=file, auth=(USER, PASSWORD), **options)
            assert answer.code == 201
            await treq.content(answer)
        hasher = hashlib.sha256()
        answer = await treq.get(stor.url(sha), unbuffered=True, **options)
        assert answer.length == 20_000_000
        await treq.collect(answer, hasher.update)
        assert hasher.hexdigest() == sha

    def test_http_client_sends_a_large_body_without_asking(self, stor, big_file):
        headers = {"Authorization": AUTHORIZATION, "Content-Length": str(big_file.size)}
        connection = http.client.HTTPConnection("127.0.0.1", stor.port, timeout=30, blocksize=MIB)
        with big_file.path.open("rb") as file:
            connection.request("PUT", f"/{big_file.sha}", file, headers)
            answer = connection.getresponse()
            assert answer.status == 201
            assert len(json.loads(answer.read())) == 2
        connection.request("GET", f"/{big_file.sha}")
        answer, hasher = connection.getresponse(), hashlib.sha256()
        while piece := answer.read(MIB):
            hasher.update(piece)
        assert hasher.hexdigest() == big_file.sha
        connection.close()
        remove(stor, big_file.sha)

    def test_http_client_sends_pieces_of_unknown_number(self, stor):
        pieces = [os.urandom(n) for n in (1, 70_000, 300_000, 5)] * 3
        sha = sha_of(b"".join(pieces))
        assert stor.request("PUT", sha, iter(pieces)).status == 201
        assert stor.get(sha).body == b"".join(pieces)
