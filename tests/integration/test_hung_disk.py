"""A disk on which every operation hangs: nobody waits for it who need not."""

import http.client
import os
import threading
import time

import attrs
import pytest

from tests.integration.load import SOAK, Audit, Connection, percentile, timed
from tests.integration.mounts import Mounts
from tests.integration.process import MIB, poll, sha_of, upload_head
from tests.support.network import Response
from tests.support.rig import request_bytes

#: How long a disk may hang before `/status` names it, and be back before it is used again.
NAMED_SECONDS = 30
BACK_SECONDS = 20

#: Below this, latencies say more about the machine than about Stor.
FLOOR_SECONDS = 0.05

#: How long clients wait in silence.
CLIENT_SECONDS = 30

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def mounts(tmp_path_factory):
    with Mounts(tmp_path_factory.mktemp("mounts")) as mounts:
        yield mounts


@attrs.frozen
class Timed:
    """One request: when it was sent, how long its answer took, and what it was.

    `status` is `None` when there was no answer, and `text` says why.
    """

    begun: float
    seconds: float
    status: int | None
    text: str


class Client(threading.Thread):
    """Makes one request after the other until `end`."""

    def __init__(self, request, pause_seconds=0.0):
        super().__init__()
        self._request = request
        self._pause_seconds = pause_seconds
        self._over = threading.Event()
        self.answers = []
        self.start()

    def run(self):
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                response = self._request()
                status, text = response.status, response.body[:1000].decode(errors="replace")
            except (OSError, http.client.HTTPException) as error:
                status, text = None, repr(error)
            self.answers.append(Timed(begun, time.monotonic() - begun, status, text))
            self._over.wait(self._pause_seconds)

    def end(self):
        self._over.set()
        self.join()

    def between(self, begin, end):
        return [answer for answer in self.answers if begin <= answer.begun < end]


class Scene:
    """A Stor with two sets of two disks, of which the very first can hang."""

    def __init__(self, mounts, start, name):
        self.disk = mounts.hanging(f"{name}-disk0", mib=2048)
        others = [mounts.tmpfs(f"{name}-disk{number}", mib=2048) for number in (1, 2, 3)]
        self.sets = [[self.disk, others[0]], others[1:]]
        pairs = [[str(disk) for disk in of_set] for of_set in self.sets]
        self.stor = start(index=False, storage_pairs=pairs, require_mount=True)

    def place(self, position, content):
        return self.stor.place(content, [disk.point for disk in self.sets[position]])

    def named(self):
        return f"{self.disk}: offline: " in self.stor.get("status").text


@attrs.frozen
class HungStart:
    """What a client saw of a Stor that was started while a disk hung, and how long it took."""

    seconds: float
    gets: list[Response]
    post: Response
    named: bool
    healed_seconds: float

    @classmethod
    def of(cls, scene, shas):
        stor = scene.stor
        stor.stop()
        with scene.disk.hung():
            begun = time.monotonic()
            stor.start()
            gets = [stor.get(sha) for sha in shas]
            seconds = time.monotonic() - begun
            post, named = stor.put(b"a new sample"), scene.named()
        healed = timed(poll, lambda: stor.get("status").status == 200, BACK_SECONDS, "the disk")
        return cls(seconds, gets, post, named, healed[0])


@attrs.frozen
class Story:
    """What clients saw before a disk hung, while it did, and afterwards."""

    scene: Scene
    start: HungStart
    hung_at: float
    healed_at: float
    named_seconds: float
    back_seconds: float
    late_posts: list[tuple[float, Response]]
    other_set: list[Client]
    same_set: Client
    unknown: Client
    posts: list[Client]
    status: Client

    def while_hung(self, client):
        return client.between(self.hung_at, self.healed_at)


@pytest.fixture(scope="module")
def story(mounts, start_in_module):
    scene = Scene(mounts, start_in_module, "story")
    stor = scene.stor
    same_set, other_set = (
        [scene.place(position, os.urandom(65_536)) for _ in range(20)] for position in (0, 1)
    )

    def get_one_of(shas):
        turn = iter(range(10**9))
        return lambda: stor.get(shas[next(turn) % len(shas)])

    start = HungStart.of(scene, [same_set[0], other_set[0]])
    clients = {
        "other_set": [Client(get_one_of(other_set)) for _ in range(2)],
        "same_set": Client(get_one_of(same_set), 0.1),
        "unknown": Client(lambda: stor.get(sha_of(os.urandom(8))), 0.1),
        "posts": [Client(lambda: stor.put(os.urandom(300_000)), 0.2) for _ in range(2)],
        "status": Client(lambda: stor.get("status"), 0.1),
    }
    try:
        time.sleep(3)
        with scene.disk.hung():
            hung_at = time.monotonic()
            poll(scene.named, NAMED_SECONDS, "a /status that names the hung disk")
            named_seconds = time.monotonic() - hung_at
            late_posts = [timed(stor.put, os.urandom(300_000)) for _ in range(20)]
            time.sleep(60 if SOAK else 0)
            healed_at = time.monotonic()
        poll(lambda: stor.get("status").status == 200, BACK_SECONDS, "a disk that is back")
        back_seconds = time.monotonic() - healed_at
        time.sleep(1)
    finally:
        for found in clients.values():
            for client in found if isinstance(found, list) else [found]:
                client.end()
    return Story(
        scene, start, hung_at, healed_at, named_seconds, back_seconds, late_posts, **clients
    )


class TestWhileADiskHangs:
    def test_the_other_set_is_read_as_fast_as_before(self, story):
        before = [a.seconds for c in story.other_set for a in c.between(0, story.hung_at)]
        during = [a.seconds for client in story.other_set for a in story.while_hung(client)]
        p99_before, p99_during = percentile(before, 0.99), percentile(during, 0.99)
        print(
            f"p99 of {len(before)} GETs before: {p99_before * 1000:.1f} ms, of {len(during)} "
            f"while a disk hangs: {p99_during * 1000:.1f} ms, slowest {max(during):.2f} s"
        )
        assert {a.status for client in story.other_set for a in client.answers} == {200}
        assert p99_during < max(2 * p99_before, FLOOR_SECONDS)

    def test_samples_of_its_own_set_are_read_from_the_other_disk(self, story):
        assert {answer.status for answer in story.same_set.answers} == {200}
        assert max(answer.seconds for answer in story.while_hung(story.same_set)) < 2

    def test_unknown_samples_are_404(self, story):
        """The other disk of the set has answered."""
        assert {answer.status for answer in story.unknown.answers} == {404}
        slowest = max(answer.seconds for answer in story.while_hung(story.unknown))
        print(f"slowest 404: {slowest:.2f} s")
        assert slowest < 10

    def test_posts_succeed(self, story):
        """Within the time that clients wait in silence."""
        posts = [answer for client in story.posts for answer in story.while_hung(client)]
        slowest = max(answer.seconds for answer in posts)
        print(f"{len(posts)} posts, the slowest took {slowest:.1f} s")
        assert [answer for answer in posts if answer.status != 201] == []
        assert slowest < CLIENT_SECONDS

    def test_posts_go_to_the_other_set_once_it_is_named(self, story):
        seconds, responses = zip(*story.late_posts, strict=True)
        assert {response.status for response in responses} == {201}
        assert all(str(story.scene.sets[1][0]) in response.text for response in responses)
        assert max(seconds) < 2

    def test_status_answers_at_once_and_names_it(self, story):
        answers = story.while_hung(story.status)
        print(f"named after {story.named_seconds:.1f} s")
        assert max(answer.seconds for answer in answers) < 1
        assert f"{story.scene.disk}: offline: " in answers[-1].text
        assert "has not answered" in answers[-1].text


class TestOnceItAnswersAgain:
    def test_it_is_used_again_without_a_restart(self, story):
        print(f"back after {story.back_seconds:.2f} s")
        poll(
            lambda: str(story.scene.disk) in story.scene.stor.put(os.urandom(1000)).text,
            what="a post that goes to the disk again",
        )

    def test_nothing_is_left_of_what_was_given_up(self, story):
        """Both disks of a set have the same samples."""
        stor = story.scene.stor
        poll(lambda: stor.staged() == [], what="an empty staging directory")
        Audit(stor.roots).check({}, {})
        for of_set in story.scene.sets:
            first, second = ({p.name for p in disk.point.glob("??/??/??/*")} for disk in of_set)
            assert first == second

    def test_sigterm_while_it_hangs_again(self, story):
        with story.scene.disk.hung():
            seconds, _ = timed(story.scene.stor.stop)
        print(f"ended after {seconds:.2f} s")
        assert seconds < 5


class TestAStartWhileADiskHangs:
    def test_answers_soon_and_serves_what_the_others_hold(self, story):
        print(f"the first answer came {story.start.seconds:.1f} s after the start")
        assert {response.status for response in story.start.gets} == {200}
        assert story.start.seconds < 10

    def test_stores_on_the_other_set(self, story):
        assert story.start.post.status == 201
        assert str(story.scene.sets[1][0]) in story.start.post.text

    def test_status_names_the_disk(self, story):
        assert story.start.named

    def test_the_disk_is_used_as_soon_as_it_answers(self, story):
        print(f"in use after {story.start.healed_seconds:.2f} s")
        assert story.start.healed_seconds < BACK_SECONDS


class TestAConnection:
    def test_goes_on_after_an_answer_that_took_long(self, mounts, start):
        """The body is complete, and fills the buffer, before the disks have said "stored"."""
        scene = Scene(mounts, start, "connection")
        content = os.urandom(MIB)
        sha = scene.place(0, content)
        connection = Connection(scene.stor.port, seconds=10)
        with scene.disk.hung():
            connection.sock.sendall(upload_head(sha, len(content)) + content)
            time.sleep(1)
        assert connection.answer().status == 200
        for _ in range(3):
            answer = connection.exchange(request_bytes("GET", f"/{sha}"))
            assert (answer.status, answer.body) == (200, content)
        connection.close()
