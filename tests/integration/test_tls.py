"""HTTPS by an `ssl:` endpoint: all as over plain connections."""

import hashlib
import json
import ssl

import pytest

from tests.engines.certificate import Certificate
from tests.integration.curl import curl
from tests.integration.process import (
    MIB,
    endpoint,
    free_port,
    parse,
    poll,
    receive_all,
    sha_of,
    upload_head,
)
from tests.support.rig import PASSWORD, USER, request_bytes

CONTENT = b"a sample"
SHA = sha_of(CONTENT)
UNKNOWN = sha_of(b"unknown")


class Secure:
    """A Stor that listens with TLS too, and clients that trust it."""

    def __init__(self, start, directory, **keys):
        self.directory = directory
        self.certificate = Certificate.make(directory)
        self.port = free_port()
        plain_port = free_port()
        secure = (
            f"ssl:{self.port}:interface=127.0.0.1"
            f":privateKey={self.certificate.key_file}:certKey={self.certificate.file}"
        )
        self.listen = [endpoint(plain_port), secure]
        self.stor = start(index=False, port=plain_port, listen=self.listen, **keys)

    def curl(self, name, *arguments):
        """curl that verifies the certificate, as the user who may store."""
        trusting = ["--cacert", self.certificate.file, "-u", f"{USER}:{PASSWORD}"]
        return curl(*trusting, *arguments, f"https://127.0.0.1:{self.port}/{name}")

    def connect(self, *protocols):
        context = ssl.create_default_context(cafile=str(self.certificate.file))
        if protocols:
            context.set_alpn_protocols(protocols)
        plain, self.stor.port = self.stor.port, self.port
        try:
            return context.wrap_socket(self.stor.connect(), server_hostname="127.0.0.1")
        finally:
            self.stor.port = plain


@pytest.fixture(scope="module")
def secure(start_in_module, tmp_path_factory):
    return Secure(start_in_module, tmp_path_factory.mktemp("tls"))


def test_post_get_head_and_a_range(secure):
    stored = secure.curl(SHA, "--data-binary", "a sample")
    assert (stored.code, len(json.loads(stored.body))) == (201, 2)
    assert secure.curl(SHA, "--data-binary", "a sample").code == 200
    assert secure.curl(SHA).body == CONTENT
    assert secure.stor.get(SHA).body == CONTENT
    assert secure.curl(SHA, "-r", "2-").body == CONTENT[2:]
    head = secure.curl(SHA, "-I").body.decode().lower()
    assert head.startswith("http/1.1 200 ")
    assert "content-length: 8\r\n" in head
    assert secure.curl("status").body == b"OK\n"


def test_a_large_sample_both_ways(secure, big_file):
    assert secure.curl(big_file.sha, "-T", big_file.path).code == 201
    fetched = secure.curl(big_file.sha)
    assert hashlib.sha256(fetched.body).hexdigest() == big_file.sha


def test_a_client_that_reads_slowly_takes_no_memory(secure):
    stor, content = secure.stor, bytes(40 * MIB)
    sha = stor.place(content)
    before = stor.memory_kib()
    with secure.connect() as sock:
        sock.sendall(request_bytes("GET", f"/{sha}", [("Connection", "close")]))
        first = sock.recv(1000)
        # Another whole request fits in between.
        assert secure.curl("status").code == 200
        assert stor.memory_kib() < before + 10 * 1024
        assert parse(first + receive_all(sock)).body == content


def test_wrong_credentials_are_answered_before_the_body_is_asked_for(secure):
    given = [("Authorization", "Basic bm86bm8="), ("Content-Length", str(10**9))]
    with secure.connect() as sock:
        sock.sendall(request_bytes("POST", f"/{UNKNOWN}", [*given, ("Expect", "100-continue")]))
        answer = sock.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'Basic realm="stor"' in answer


def test_wrong_credentials_are_readable_by_a_client_that_sends_all_the_same(secure, big_file):
    refused = secure.curl(UNKNOWN, "-u", "no:no", "-H", "Expect:", "-T", big_file.path)
    assert (refused.code, refused.errors) == (401, [])
    assert b"unauthorized" in refused.body


def test_a_client_that_would_rather_have_http2_gets_http1(secure):
    with secure.connect("h2", "http/1.1") as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"
        sock.sendall(request_bytes("GET", "/status", [("Connection", "close")]))
        assert parse(receive_all(sock)).body == b"OK\n"


def test_a_client_that_does_not_trust_the_certificate_or_speaks_no_tls_harms_nobody(secure):
    for client in ("https", "http"):
        assert curl(f"{client}://127.0.0.1:{secure.port}/status").status != 0
    assert secure.curl("status").body == b"OK\n"


def test_what_is_in_flight_at_the_end_is_finished(start, tmp_path, big_file):
    secure = Secure(start, tmp_path)
    content = big_file.path.read_bytes()[: 20 * MIB]
    sha = secure.stor.place(content)
    with secure.connect() as sock:
        sock.sendall(request_bytes("GET", f"/{sha}"))
        first = sock.recv(1000)
        secure.stor.signal()
        poll(secure.stor.refuses, 5, "new connections are refused")
        assert parse(first + receive_all(sock)).body == content
    secure.stor.ended(10)


def test_one_connection_more_takes_the_place_of_an_idle_one(start, tmp_path):
    secure = Secure(start, tmp_path, max_connections=2)
    poll(lambda: sum("socket:" in d for d in secure.stor.descriptors()) == 2, what="no connection")
    with secure.connect() as oldest, secure.connect() as other:
        other.sendall(request_bytes("GET", "/status"))
        assert b"200 OK" in other.recv(10_000)
        assert secure.curl("status").body == b"OK\n"
        assert oldest.recv(1) == b""


def test_one_connection_too_many_is_told_so(start, tmp_path):
    secure = Secure(start, tmp_path, max_connections=2)
    poll(lambda: sum("socket:" in d for d in secure.stor.descriptors()) == 2, what="no connection")
    with secure.connect() as first, secure.connect() as second:
        for number, sock in enumerate([first, second]):
            sock.sendall(upload_head(sha_of(b"%d" % number), 10, ("Expect", "100-continue")))
            assert b"100 Continue" in sock.recv(10_000)
        refused = secure.curl("0" * 64)
        assert secure.curl("status").body == b"OK\n"
    assert (refused.code, refused.errors) == (503, [])
    assert b"max_connections" in refused.body


def test_the_end_waits_for_no_idle_client(start, tmp_path):
    """One that does not say that it has seen the end of the connection (RFC 8446, 6.1)."""
    secure = Secure(start, tmp_path)
    with secure.connect() as silent, secure.connect() as served:
        served.sendall(request_bytes("GET", "/status"))
        assert b"200 OK" in served.recv(10_000)
        secure.stor.signal()
        secure.stor.ended(10)
        assert silent.recv(1) == b""


def test_a_renewed_certificate_is_in_force_after_a_restart(start, tmp_path):
    secure = Secure(start, tmp_path)
    old = secure.certificate.file.read_bytes()
    Certificate.make(tmp_path)
    assert secure.certificate.file.read_bytes() != old
    secure.stor.reload(listen=secure.listen)
    with pytest.raises(ssl.SSLCertVerificationError):
        secure.connect()
    secure.stor.stop()
    secure.stor.start()
    assert secure.curl("status").body == b"OK\n"
