"""Many samples in one request, as curl asks."""

import subprocess

import pytest

from tests.integration.curl import curl
from tests.integration.process import poll, sha_of

KEPT = [b"sample %d" % number for number in range(50)]
ABSENT = [sha_of(b"absent %d" % number) for number in range(5)]


def missing(stor, shas):
    """What is said of a list, but for its last line, which is right."""
    answer = curl("--data-binary", "\n".join(shas), stor.url("missing"))
    assert answer.code == 200
    *lines, end = answer.body.decode().splitlines()
    words = [line.split()[0] for line in lines]
    assert end == f"end {len(shas)} {words.count('missing')} {words.count('unknown')}"
    return lines


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_missing_is_known_and_samples_are_listed(start, workers):
    stor = start(sets=(2, 2), workers=workers)
    for content in KEPT[:40]:
        assert stor.put(content).status == 201
    shas = [*map(sha_of, KEPT), *ABSENT]
    absent = [f"missing {sha}" for sha in shas[40:]]
    poll(lambda: missing(stor, shas) == absent, 30, "all names to be known")
    for content in KEPT[40:]:
        assert stor.put(content).status == 201
    assert missing(stor, shas) == [f"missing {sha}" for sha in ABSENT]
    expected = sorted(f"{sha_of(content)} {len(content)}\n" for content in KEPT)
    listed = curl(stor.url("index", "writer:writer_pass@"))
    assert listed.body.decode() == "".join([*expected, f"end {len(expected)}\n"])
    first = expected[0][:2]
    part = curl(stor.url(f"index?prefix={first}", "writer:writer_pass@"))
    of_part = [line for line in expected if line.startswith(first)]
    assert part.body.decode() == "".join([*of_part, f"end {len(of_part)}\n"])
    assert curl(stor.url("index")).code == 401


@pytest.mark.parametrize("workers", [1, 2])
def test_tar_unpacks_what_is_asked_for(start, tmp_path, workers):
    stor = start(sets=(2, 2), workers=workers)
    contents = [*KEPT, b"", b"x" * 1_000_000]
    for content in contents:
        assert stor.put(content).status == 201
    asked = "\n".join([*map(sha_of, contents), *ABSENT])
    answer = curl("--data-binary", asked, stor.url("batch"))
    assert (answer.status, answer.code) == (0, 200)
    subprocess.run(["tar", "-x", "-C", tmp_path], input=answer.body, check=True)
    for content in contents:
        path = tmp_path / sha_of(content)
        assert path.read_bytes() == content
        path.unlink()
    lines = [f"missing {sha}" for sha in ABSENT]
    said = (tmp_path / "missing.txt").read_text().splitlines()
    assert said == [*lines, f"end {len(contents) + len(ABSENT)} {len(ABSENT)} 0"]
