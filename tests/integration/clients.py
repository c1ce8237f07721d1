"""Clients that read what a Stor holds, store more, and follow what lands: what they have met."""

import contextlib
import http.client
import json
import random
import threading
import time

from tests.integration.process import sha_of


class Clients:
    """They work from `begin` to `stop`, also while Stor is killed and begins again.

    `stored` has what was acknowledged, by its sha; `wrong` what was not as it was promised: bytes
    that are others, a 404, any error but a 503. `unavailable` are the 503s: a Stor that has just
    begun says that until it has looked at its disks.
    """

    def __init__(self, stor, stored=()):
        self.stor = stor
        self.stored = dict(stored)
        self.wrong = []
        self.told = set()
        self.reads = self.lost_connections = self.unavailable = self.refused = 0
        self._cursor = None
        self._age = 0
        self._over = threading.Event()
        self._told_of_new = set()
        self._threads = [
            threading.Thread(target=work, args=(seed,), daemon=True)
            for seed, work in enumerate((self._read, self._read, self._write, self._follow))
        ]

    def begin(self):
        self._cursor = self._page(None, wait=0)
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    @contextlib.contextmanager
    def working(self):
        self.begin()
        try:
            yield self
        finally:
            self.stop()

    def forget_what_landed(self):
        """Stor has lost, as it may, what it told: only what is stored from now on is told of."""
        self._age += 1
        self._cursor = None
        self._told_of_new.clear()

    def untold(self):
        """What was acknowledged meanwhile and not told of by `/landed`, once that is at its end."""
        self._cursor = self._page(self._cursor, wait=0)
        return self._told_of_new - self.told

    def _read(self, seed):
        rng = random.Random(seed)
        while not self._over.is_set():
            sha = rng.choice(list(self.stored))
            try:
                answer = self.stor.get(sha)
            except (OSError, http.client.HTTPException):
                self.lost_connections += 1
                self._over.wait(0.05)
                continue
            self.reads += 1
            self._over.wait(0.01)  # others use the machine, too
            if answer.status == 503:
                self.unavailable += 1
                self._over.wait(0.05)
            elif (answer.status, answer.body) != (200, self.stored[sha]):
                self.wrong.append((time.time(), sha, answer.status, answer.body[:300]))

    def _write(self, seed):
        rng = random.Random()
        while not self._over.is_set():
            content, age = rng.randbytes(rng.randrange(6000)), self._age
            try:
                status = self.stor.put(content).status
            except (OSError, http.client.HTTPException):
                self._over.wait(0.05)
                continue
            if status in (200, 201):
                self.stored[sha_of(content)] = content
                if age == self._age:
                    self._told_of_new.add(sha_of(content))
            elif status in (503, 507):
                self.refused += 1
            else:
                self.wrong.append((time.time(), sha_of(content), status, "POST"))
            self._over.wait(0.05)

    def _follow(self, seed):
        while not self._over.is_set():
            age = self._age
            try:
                cursor = self._page(self._cursor, wait=1)
                if age == self._age:
                    self._cursor = cursor
            except (OSError, http.client.HTTPException):
                self._over.wait(0.05)

    def _page(self, cursor, wait):
        after = "" if cursor is None else f"&after={cursor}"
        answer = self.stor.request("GET", f"landed?wait={wait}{after}")
        if answer.status == 503:
            self._over.wait(0.05)
            return cursor
        if answer.status != 200:
            self.wrong.append((time.time(), "landed", answer.status, answer.body[:300]))
            return cursor
        for line in answer.text.splitlines():
            self.told.add(json.loads(line)["sha"])
        return answer.headers["stor-cursor"]
