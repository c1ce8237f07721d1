"""Clients of a Stor that count what fails: load.py URL USER:PASSWORD SECONDS

Most open a connection a request; one uploads, and one downloads, so slowly that a restart comes
in between. The last line on standard output is JSON; the exit status is 1 when anything failed.
"""

import base64
import hashlib
import http.client
import json
import os
import sys
import threading
import time
from urllib.parse import urlsplit

SMALL_BYTES = 20_000
LARGE_BYTES = 8_000_000
PIECES = 20
QUICK_CLIENTS = 4


class Load:
    """What the clients did, together."""

    def __init__(self, address, credentials, seconds):
        self._address = address
        self._headers = {"Authorization": "Basic " + base64.b64encode(credentials).decode()}
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.requests = 0
        self.slowest_seconds = 0.0
        self.failures = []

    def run(self):
        """Run all clients to their end."""
        clients = [self._quick] * QUICK_CLIENTS + [self._slow_upload, self._slow_download]
        threads = [threading.Thread(target=self._repeat, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(self, client):
        while time.monotonic() < self._deadline:
            try:
                client()
            except (OSError, http.client.HTTPException) as error:
                self._failed(f"{client.__name__}: {error!r}")
                time.sleep(0.1)  # a Stor that refuses everything needs no thousands of lines

    def _quick(self):
        content = os.urandom(SMALL_BYTES)
        sha = hashlib.sha256(content).hexdigest()
        self._request("POST", sha, content, 201)
        received = self._request("GET", sha, None, 200)
        if received != content:
            self._failed(f"GET {sha}: other bytes than were stored")

    def _slow_upload(self):
        content = os.urandom(LARGE_BYTES)
        self._request("POST", hashlib.sha256(content).hexdigest(), content, 201, slowly=True)

    def _slow_download(self):
        content = hashlib.sha256(b"slow").digest() * (LARGE_BYTES // 32)
        sha = hashlib.sha256(content).hexdigest()
        self._request("POST", sha, content, 201, 200)
        if self._request("GET", sha, None, 200, slowly=True) != content:
            self._failed(f"slow GET {sha}: other bytes than were stored")

    def _request(self, method, sha, body, *expected, slowly=False):
        begun = time.monotonic()
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            pieces = _slowly(body) if slowly and body else body
            headers = self._headers | ({"Content-Length": str(len(body))} if body else {})
            connection.request(method, f"/{sha}", pieces, headers)
            answer = connection.getresponse()
            received = _read_slowly(answer) if slowly else answer.read()
        finally:
            connection.close()
        with self._lock:
            self.requests += 1
            if not slowly:
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begun)
        if answer.status not in expected:
            self._failed(f"{method} {sha}: {answer.status} {received[:200]!r}")
        return received

    def _failed(self, what):
        with self._lock:
            self.failures.append(what)


def _slowly(body):
    """The body in pieces, over some seconds."""
    size = len(body) // PIECES
    for start in range(0, len(body), size):
        yield body[start : start + size]
        time.sleep(0.2)


def _read_slowly(answer):
    received = bytearray()
    while piece := answer.read(LARGE_BYTES // PIECES):
        received += piece
        time.sleep(0.2)
    return bytes(received)


def main(url, credentials, seconds):
    load = Load(urlsplit(url).netloc, credentials.encode(), float(seconds))
    load.run()
    for failure in load.failures[:20]:
        print(failure)
    print(
        json.dumps(
            {
                "requests": load.requests,
                "failures": len(load.failures),
                "slowest_seconds": round(load.slowest_seconds, 2),
            }
        )
    )
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
