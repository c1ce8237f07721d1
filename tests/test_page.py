"""The page for people: for whom it is, what it says, and that nothing in it is anybody else's."""

import base64
import hashlib
import itertools
import re
import shutil
from html.parser import HTMLParser

import attrs
import pytest

from stor import __version__
from stor.http.page import Asked, Moment, page, wants_page
from stor.status import (
    DiskStatus,
    JobStatus,
    S3Copies,
    S3Status,
    SetStatus,
    Status,
    Unwritable,
    Work,
)
from tests.support.bucket import MemoryBucket
from tests.support.http import AUTHORIZED, HeldPools, no_bug_logged, upload_head
from tests.support.rig import Rig, digest_of, request_bytes

FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,"
    "*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)
TERABYTE = 10**12


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (FIREFOX, True),
        (CHROMIUM, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/html, text/plain", True),
        ("text/plain;q=0.5, text/html;q=0.5", True),
        ("text/html;level=1", True),
        ("text/html ; q=0.9 , text/*;q=0.8", True),
        ("text/plain;q=0, text/html;q=0.1", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("text/plain", False),
        ("application/json", False),
        ("text/html;q=0.5, */*", False),
        ("text/html;q=0.5, text/*;q=0.6", False),
        ("text/html;q=0.9, text/plain", False),
        ("text/html;q=0", False),
        ("text/html;q=much", False),
        ("text/html;q=nan", False),
        ("application/xhtml+xml", False),
        (";,;q=,text/htmlx", False),
    ],
)
def test_it_is_for_those_who_would_rather_have_html(accept, expected):
    assert wants_page(None if accept is None else accept.encode()) == expected


class Words(HTMLParser):
    """The text of a page, and its elements with their attributes."""

    def __init__(self, html):
        super().__init__()
        self.words, self.elements = [], []
        self._within = []
        self.feed(html)
        assert self._within == [], "every element is closed"

    VOID = ("meta", "link", "input")

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._within.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._within.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self._within:
            self.words.append(data.strip())


def fetched(rig, accept=FIREFOX):
    return rig.request("GET", "/", [("Accept", accept)] if accept else [])


@pytest.mark.parametrize(("disks", "shown"), [(12, 12), (13, 4)])
def test_of_many_disks_those_are_told_that_have_to_do_with_the_sample(disks, shown):
    nothing = {"says": "has nothing under its name", "state": "online", "complete": True}
    nothing |= {"scrubbed": None, "index": "does not have it"}
    found = {"path": "/disk0/x", "says": "has it", "size": 7, "modified": 0.0, "index": "has it"}
    lacks = {"index": "has it", "repair": "has one copy"}
    others = [found, lacks, {"complete": False}, {"state": "offline", "says": "not asked"}]
    places = [nothing | other for other in (*others, *[{}] * (disks - 4))]
    places = [{"root": f"/disk{n}", **place} for n, place in enumerate(places)]
    answer = {"status": 200, "reason": "from /disk0"}
    asked = Asked("0" * 64, {"sha": "0" * 64, "answer": answer, "places": places})
    words = Words(page(Status(), Moment(), 0.0, asked).body.decode()).words
    assert [word for word in words if word.startswith("/disk")] == [
        f"/disk{n}" for n in range(shown)
    ]
    assert (f"{disks - shown} more disks have nothing of it" in words) == (shown < disks)


class TestRequests:
    @pytest.fixture
    def rig(self, tmp_path):
        return Rig(tmp_path)

    def test_a_browser_gets_the_page(self, rig):
        response = fetched(rig)
        assert response.status == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["vary"].split(", ")[0] == "Accept"
        words = Words(response.text).words
        assert "All storages are available" in words
        assert all(str(root) in words for root in rig.roots)
        assert words.count("online") == 4

    @pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "application/json"])
    def test_everybody_else_gets_the_line(self, rig, accept):
        response = fetched(rig, accept)
        assert response.text == f"This is Stor {__version__}"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["vary"] == "Accept"

    def test_head_is_get_without_the_page(self, rig):
        head = rig.request("HEAD", "/", [("Accept", FIREFOX)])
        assert head.body == b""
        assert head.headers["content-type"] == "text/html; charset=utf-8"
        assert head.headers["content-length"] == str(len(fetched(rig).body))

    def test_nothing_but_its_own_style_may_be_loaded_or_run(self, rig):
        response = fetched(rig)
        (style,) = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = response.headers["content-security-policy"]
        assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
        assert "unsafe" not in policy
        assert "url(" not in style
        assert "@import" not in style
        for tag, attributes in Words(response.text).elements:
            assert tag not in ("script", "img", "iframe", "link", "object")
            assert not {"src", "href", "style", "onload"} & attributes.keys()
        assert response.headers["x-content-type-options"] == "nosniff"

    def test_where_a_sample_is_can_be_asked(self, rig):
        rig.reconfigure(explained=True)
        content = b"content"
        rig.put(content)
        sha = str(digest_of(content))
        copies = [path.parents[3] for path in rig.copies(content)]
        (form,) = [a for tag, a in Words(fetched(rig).text).elements if tag == "form"]
        assert form == {"action": "/", "method": "get"}
        response = rig.request("GET", f"/?explain=+{sha.upper()}+", [("Accept", FIREFOX)])
        assert "form-action 'self'" in response.headers["content-security-policy"]
        found = Words(response.text)
        # Each look at a sample asks all disks.
        assert not [a for _, a in found.elements if "http-equiv" in a]
        assert [a["value"] for tag, a in found.elements if tag == "input"] == [sha.upper()]
        answers = [word for word in found.words if word.startswith("A GET is answered 200: from ")]
        assert [word.split()[-1] in map(str, copies) for word in answers] == [True]
        assert sum(word.startswith("has it: 7 B, stored ") for word in found.words) == 2
        assert found.words.count("has nothing under its name") == 2
        for path in rig.copies(content):
            path.unlink()
        found = Words(rig.request("GET", f"/?explain={sha}", [("Accept", FIREFOX)]).text)
        assert found.words.count("has nothing under its name") == 4
        assert any(word.startswith("A GET is answered 404: ") for word in found.words)

    @pytest.mark.parametrize(
        ("fault", "sample", "status", "says"),
        [
            (None, b"in s3", 200, "has it: 5 B, stored "),
            (None, b"nowhere", 404, "has nothing under its name"),
            ("s3: no answer", b"in s3", 503, "not asked: s3: no answer"),
        ],
    )
    def test_s3_is_one_of_the_places(self, rig, fault, sample, status, says):
        bucket = MemoryBucket(b"in s3")
        bucket.fault = fault
        rig.reconfigure(explained=True, bucket=bucket, order=("disk", "s3"))
        path = f"/?explain={digest_of(sample)}"
        words = Words(rig.request("GET", path, [("Accept", FIREFOX)]).text).words
        assert any(word.startswith(f"A GET is answered {status}: ") for word in words)
        in_list = words[words.index("s3") + 1 :]
        assert in_list[0].startswith(says)
        assert in_list[1] == ("available" if fault is None else "not available")

    @pytest.mark.parametrize("text", ["abc", "%3Cb%3E", "%00", "%ff", "0" * 65, "0" * 5000])
    def test_what_is_no_sha_is_said_to_be_none(self, rig, text):
        rig.reconfigure(explained=True)
        response = rig.request("GET", f"/?explain={text}", [("Accept", FIREFOX)])
        assert response.status == 200
        found = Words(response.text)
        assert "a SHA-256 is 64 hexadecimal digits" in found.words
        assert "b" not in {tag for tag, _ in found.elements}

    def test_to_ask_takes_the_rights_that_a_get_takes(self, rig):
        rig.reconfigure(explained=True, read_auth=True)
        path, accept = f"/?explain={digest_of(b'content')}", ("Accept", FIREFOX)
        assert fetched(rig).status == 200
        assert rig.request("GET", path, [accept]).status == 401
        assert rig.request("GET", path, [accept, AUTHORIZED]).status == 200
        assert "explain" not in rig.request("GET", path).text

    def test_one_sample_is_looked_at_at_a_time(self, tmp_path):
        disks = HeldPools()
        rig = Rig(tmp_path, worker=disks)
        rig.reconfigure(explained=True)
        asking = request_bytes("GET", f"/?explain={'0' * 64}", [("Accept", FIREFOX)])
        first, second = rig.connect(), rig.connect()
        first.send(asking)
        second.send(asking)
        assert first.responses() == []
        assert "another sample is being looked at" in second.responses()[0].text
        disks.release()
        first.settle()
        assert "A GET is answered 404" in first.responses()[0].text
        second.send(asking)
        disks.release()
        second.settle()
        assert "A GET is answered 404" in second.responses()[-1].text

    def test_it_refreshes_itself(self, rig):
        refresh = [a for t, a in Words(fetched(rig).text).elements if "http-equiv" in a]
        assert refresh == [{"http-equiv": "refresh", "content": "15"}]

    def test_a_disk_that_is_away_is_said_and_why(self, rig):
        shutil.rmtree(rig.roots[1])
        rig.clock.advance(100)
        rig.probe()
        rig.clock.advance(200)
        response = fetched(rig)
        words = Words(response.text).words
        assert response.status == 200
        assert "1 of 4 disks is not available" in words
        assert "offline for 3 min" in words
        assert "not a directory" in words
        assert words.count("takes no new samples") == 1
        assert words.count("takes new samples") == 1
        assert len([word for word in words if word.endswith(" when last seen")]) == 1

    def test_uploads_in_flight_are_counted(self, rig):
        running = [rig.connect() for _ in range(3)]
        for n, connection in enumerate(running):
            connection.send(upload_head(b"%d" % n, ("Content-Length", "1")))
        words = Words(fetched(rig).text).words
        assert words[words.index("Uploads in flight") + 1] == "3"
        for connection in running:
            connection.close()

    def test_the_end_of_the_service_is_said(self, rig):
        rig.uploads.stop()
        assert "Stopping: what runs is finished" in Words(fetched(rig).text).words


DISK = DiskStatus(
    "/mnt/data1", "online", total_bytes=4 * TERABYTE, free_bytes=TERABYTE, reserve_bytes=10**9
)
S3 = S3Status("samples")
S3_AWAY = S3Status("samples", available=False)


OFFLINE = {"state": "offline", "reason": "/mnt/data10: gone", "since": 40.0}
FULL = {"unwritable": Unwritable("full", "full up to 1 GB", 40.0)}
REFUSED = {
    "state": "read-only",
    "reason": "no names",
    "since": 40.0,
    "unwritable": Unwritable("refused", "no names", 40.0),
}


def status_of(*sets):
    """A status with sets of disks, each named for its place."""
    numbers = itertools.count(1)
    return Status(
        sets=[
            SetStatus(
                [
                    attrs.evolve(DISK, **{"root": f"/mnt/data{next(numbers)}"} | disk)
                    for disk in disks
                ],
                writable=all(disk.keys().isdisjoint(("reason", "unwritable")) for disk in disks),
                samples=1000,
                indexed=True,
            )
            for disks in sets
        ]
    )


def shown(status, **about):
    return Words(page(status, Moment(), 100.0, **about).body.decode())


def words_of(*disks, **changes):
    of_set = SetStatus([attrs.evolve(DISK, **disk) for disk in disks], samples=1234, indexed=True)
    status = attrs.evolve(Status(sets=[of_set] if disks else []), **changes)
    return Words(page(status, Moment(), 100.0).body.decode())


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        ({}, ["1.0 TB free of 4.0 TB", "75%", "online"]),
        ({"free_bytes": 0}, ["0 B free of 4.0 TB", "100%"]),
        ({"free_bytes": 4 * TERABYTE}, ["4.0 TB free of 4.0 TB", "0%"]),
        ({"free_bytes": 5 * TERABYTE}, ["0%"]),
        ({"free_bytes": 999_500}, ["1.0 MB free of 4.0 TB"]),
        ({"free_bytes": 999_400}, ["999 kB free of 4.0 TB"]),
        ({"free_bytes": 12_345_678_901}, ["12 GB free of 4.0 TB"]),
        ({"total_bytes": 0}, ["size not known yet"]),
        ({"state": "suspect", "reason": "3 I/O errors"}, ["suspect for 100 s", "3 I/O errors"]),
        ({"complete": False}, ["online, not complete"]),
        ({"complete": False, "compared": 0.123}, ["online, not complete, 12% compared"]),
        ({"state": "read-only", "held": True}, ["read-only, held by the operator"]),
        (
            FULL,
            ["takes no new samples for 60 s", "full up to 1 GB"],
        ),
        (
            {
                "state": "read-only",
                "reason": "no names",
                "since": 40.0,
                "unwritable": Unwritable("refused", "no names", 40.0),
            },
            ["read-only for 60 s", "no names"],
        ),
        ({"state": "offline", "reason": "/mnt/data1: gone", "since": 95.0}, ["offline for 5 s"]),
        ({"state": "offline", "reason": "/mnt/data1: gone"}, ["gone"]),
        ({"state": "offline", "reason": "x", "since": 100 - 90_000.0}, ["offline for 25 h"]),
        ({"state": "offline", "reason": "x", "since": 200.0}, ["offline for 0 s"]),
    ],
)
def test_a_disk(disk, expected):
    words = words_of(disk).words
    assert [word for word in expected if word not in words] == []


@pytest.mark.parametrize(("free", "width"), [(0, "100.0"), (1, "75.0"), (3, "25.0"), (4, "0.0")])
def test_the_bar_is_as_full_as_the_disk(free, width):
    elements = words_of({"free_bytes": free * TERABYTE}).elements
    (bar,) = [attributes for tag, attributes in elements if tag == "rect"]
    assert bar["width"] == width


@pytest.mark.parametrize(
    ("reasons", "s3", "expected"),
    [
        ([None, None], None, "All storages are available"),
        ([None, None], S3, "All storages are available"),
        (["x", None], None, "1 of 2 disks is not available"),
        (["x", "x"], S3, "2 of 2 disks are not available"),
        ([None, None], S3_AWAY, "S3 is not available"),
        (["x", None], S3_AWAY, "1 of 2 disks and S3 are not available"),
        ([], S3, "All storages are available"),
    ],
)
def test_the_verdict(reasons, s3, expected):
    words = words_of(*({"reason": reason} for reason in reasons), s3=s3).words
    assert words[0] == f"{expected} - Stor", "the title"
    assert expected in words


def test_a_problem_without_a_place_on_the_page_is_said():
    assert "the moon is full" in words_of({}, problems=["the moon is full"]).words


def test_warnings_are_said():
    assert "two copies on one disk" in words_of({}, warnings=["two copies on one disk"]).words


def test_copies_that_wait_for_s3():
    words = words_of(s3=attrs.evolve(S3, copies=S3Copies(1234, 7200.0, 5))).words
    assert "1,234 copies to be sent, the oldest for 2 h; 5 sent" in words


HOSTILE = "</span><script>alert(1)</script>\"'&<b>"


@pytest.mark.parametrize("key", ["root", "reason"])
def test_what_a_disk_says_is_text(key):
    found = words_of({key: HOSTILE})
    assert HOSTILE in found.words
    assert "script" not in [tag for tag, _ in found.elements]


def test_what_s3_and_warnings_say_is_text():
    s3 = S3Status(HOSTILE, available=False, reason=HOSTILE)
    found = words_of(s3=s3, problems=[HOSTILE], warnings=[HOSTILE])
    assert f"bucket {HOSTILE}" in found.words
    assert found.words.count(HOSTILE) == 3
    assert "script" not in [tag for tag, _ in found.elements]


def test_a_path_that_is_no_text_is_shown_all_the_same():
    (word,) = [word for word in words_of({"root": "/mnt/\udcff"}).words if "/mnt/" in word]
    assert word == "/mnt/\\udcff"


def figures_of(words):
    """What stands under each of the page's headings."""
    names = ("Free", "For new samples", "Full in, at last week's rate", "Lowest set", "Samples")
    return {name: words[words.index(name) + 1] for name in names if name in words}


def test_the_totals_are_of_sets_each_as_large_as_its_smallest_disk():
    small = {"total_bytes": 2 * TERABYTE, "free_bytes": TERABYTE // 2, "reserve_bytes": 10**11}
    status = status_of([{}, {}], [{}, small], [{}, FULL | {"free_bytes": 10**9}])
    assert figures_of(shown(status).words) == {
        "Free": "1.5 TB of 10 TB",
        "For new samples": "1.4 TB",
        "Lowest set": "400 GB (set 2)",
        "Samples": "3,000",
    }
    unseen = {"total_bytes": 0, "free_bytes": 0}
    status = status_of([{}, unseen], [{}, small], [{}, FULL | {"free_bytes": 10**9}])
    assert figures_of(shown(status).words)["Free"] == "1.5 TB of 10 TB"
    learning = attrs.evolve(status.sets[0], indexed=False)
    status = attrs.evolve(status, sets=[learning, *status.sets[1:]])
    assert figures_of(shown(status).words)["Samples"] == "at least 3,000"


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (None, None),
        (0.2, "less than a day"),
        (1.2, "a day"),
        (143.2, "143 days"),
        (4000, "11 years"),
    ],
)
def test_how_long_there_is_room(days, expected):
    figures = figures_of(shown(status_of([{}, {}]), days_left=days).words)
    assert figures.get("Full in, at last week's rate") == expected


def test_the_host_stands_in_the_title_and_in_the_head():
    words = shown(status_of([{}]), host="store7 <b>").words
    assert words[0] == "All storages are available - Stor on store7 <b>"
    assert "Stor on store7 <b>" in words[1:]


@pytest.mark.parametrize("sets", [5, 13, 100])
def test_what_is_wrong_comes_first_with_links_to_its_disks(sets):
    """With few sets and with many, whose rows are short."""
    wrong = {4: OFFLINE, 1: FULL, 2: REFUSED, 3: {"complete": False, "compared": 0.37}}
    status = status_of(*([{}, wrong.get(n, {})] for n in range(sets)))
    lacking = "/mnt/data8: not complete, it may lack samples of its set"
    status = attrs.evolve(status, warnings=[lacking, "something else"])
    found = shown(status)
    links = [a["href"] for tag, a in found.elements if tag == "a"]
    places = [a["id"] for tag, a in found.elements if "id" in a]
    assert [link.removeprefix("#") for link in links] == ["d10", "d4", "d6", "d8"]
    assert sorted(places, key=lambda place: int(place[1:])) == [
        f"d{n + 1}" for n in range(2 * sets)
    ]
    assert places[:8] == ["d9", "d10", "d3", "d4", "d5", "d6", "d7", "d8"]
    # The place of each in the text, the one in the list before the one in its set.
    for root in ("/mnt/data10", "/mnt/data4", "/mnt/data6", "/mnt/data8"):
        assert found.words.count(root) == 2
    assert "offline for 60 s: gone" in found.words
    assert "takes no new samples for 60 s: full up to 1 GB" in found.words
    assert "read-only for 60 s: no names" in found.words
    assert "online, not complete, 37% compared" in found.words
    assert "something else" in found.words
    assert not any("it may lack samples" in word for word in found.words)


@pytest.mark.parametrize(
    ("disk", "level"),
    [
        ({}, "good"),
        ({"state": "read-only", "held": True}, "good"),
        (FULL, "warn"),
        ({"complete": False}, "warn"),
        (REFUSED, "bad"),
        (OFFLINE, "bad"),
    ],
)
def test_the_verdict_has_its_colour(disk, level):
    classes = [a.get("class") for _, a in shown(status_of([{}, disk])).elements]
    assert f"verdict {level}" in classes


@pytest.mark.parametrize(
    ("at_risk", "expected"),
    [
        (0, "All storages are available"),
        (1, "All storages are available; 1 sample has too few good copies"),
        (1234, "All storages are available; 1,234 samples have too few good copies"),
    ],
)
def test_samples_at_risk_are_in_the_verdict(at_risk, expected):
    found = shown(attrs.evolve(status_of([{}]), work=Work([], at_risk)))
    assert expected in found.words
    assert ("verdict warn" in [a.get("class") for _, a in found.elements]) == (at_risk > 0)


@pytest.mark.parametrize(
    ("used", "colour"), [(0.0, "f0"), (0.74, "f0"), (0.76, "f1"), (0.91, "f2"), (0.96, "f3")]
)
def test_a_bar_has_the_colour_of_its_fill(used, colour):
    disk = {"free_bytes": round((1 - used) * 4 * TERABYTE)}
    bars = [a["class"] for tag, a in shown(status_of([disk])).elements if tag == "svg"]
    assert bars == [f"bar {colour}"]


def test_with_everything_gone_the_list_ends_somewhere_and_the_page_stays_small():
    status = status_of(*([OFFLINE, OFFLINE] for _ in range(100)))
    found = shown(status)
    assert sum(tag == "a" for tag, _ in found.elements) == 100
    assert "and 100 more, see /status" in found.words
    assert len(page(status, Moment(), 100.0).body) <= 150_000


def work(**values):
    """A job as the page is told of it."""
    known = {field.name: None for field in attrs.fields(JobStatus)} | {
        "kind": "scrub",
        "about": "/disk",
        "state": "running",
        "continuous": False,
        "done": 0.25,
        "eta_seconds": 7200,
        "not_mended": 0,
    }
    return JobStatus(**known | values)


def test_jobs_that_somebody_asked_for_are_listed_and_passes_are_counted():
    jobs = [
        work(about="/<b>", reason="a & b"),
        work(not_mended=3, state="paused", eta_seconds=None),
    ]
    jobs += [work(continuous=True, done=share) for share in (0.5, 0.625, 0.75)]
    jobs.append(work(continuous=True, not_mended=1, about="/worn", done=0.6))
    told = Status(work=Work(jobs, 1234))
    text = page(told, Moment(), 0).body.decode()
    assert "<span>scrub /&lt;b&gt;</span><svg " in text
    assert "</svg><span>running, 25.0%, 2 h left, a &amp; b</span>" in text
    assert text.count('<rect width="25.0"') == 2
    assert text.index('class="jobs"') < text.index("</main>")
    assert "paused, 25.0%, 3 not mended" in text
    assert "scrub /worn" in text
    assert "4 disks, 50% to 75% of this pass" in text
    assert '<dt>Samples at risk</dt><dd class="warn">1,234</dd>' in text


def test_without_jobs_nothing_is_said_of_them():
    told = Status()
    assert 'class="jobs"' not in page(told, Moment(), 0).body.decode()
