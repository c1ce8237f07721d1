"""A sample's name: two spellings of it, and nothing else."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.digest import Digest, MalformedDigest

HEX = "0123456789abcdefABCDEF"
GOOD = "0123456789abcdefABCDEF" + "0" * 42

RAW = st.binary(min_size=32, max_size=32)

steady = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@steady
@given(RAW, st.data())
def test_every_spelling_is_one_digest(raw, data):
    lower = raw.hex()
    flips = data.draw(st.lists(st.booleans(), min_size=64, max_size=64))
    mixed = "".join(c.upper() if flip else c for c, flip in zip(lower, flips, strict=True))
    assert Digest.parse(lower) == Digest.parse(lower.upper()) == Digest.parse(mixed) == Digest(raw)
    assert len({Digest.parse(lower), Digest.parse(mixed)}) == 1
    assert str(Digest.parse(mixed)) == lower


@steady
@given(RAW)
def test_paths_and_keys_are_made_of_the_digits(raw):
    digest, name = Digest(raw), raw.hex()
    upper = name.upper()
    assert digest.disk_path == f"{upper[0:2]}/{upper[2:4]}/{upper[4:6]}/{upper}.dat"
    assert digest.s3_key == f"{name[0:2]}/{name[2:4]}/{name[4:6]}/{name}"
    assert digest.directories == (upper[:2], f"{upper[:2]}/{upper[2:4]}", digest.disk_path[:8])


@steady
@given(st.binary(max_size=1000))
def test_the_digest_of_bytes_is_their_sha_256(content):
    assert str(Digest.of(content)) == hashlib.sha256(content).hexdigest()


@steady
@given(RAW, RAW)
def test_other_bytes_are_another_digest(one, other):
    assert (Digest(one) == Digest(other)) == (one == other)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", GOOD[:-1], GOOD + "0", GOOD * 2),
        *(GOOD + end for end in ("\n", "\r\n", " ", "\0", ".dat", "/")),
        *(
            GOOD[:-1] + end
            for end in ("\n", " ", "\0", "g", "G", "/", "\u0663", "\uff13", "\ud800")
        ),
        *(begin + GOOD[len(begin) :] for begin in ("0x", "+", "-", " ", "\n", "#", "%", "..", "/")),
        *(begin + GOOD for begin in ("0x", "sha256:", " ", "\n", "+", "./")),
        GOOD[:32] + "_" + GOOD[33:],
        GOOD[:32] + " " + GOOD[32:],
        GOOD[:31] + " " + GOOD[32:],
        # Digits and letters of other scripts.
        *(character * 64 for character in "\u0660\uff10\uff41"),
    ],
)
def test_anything_else_is_malformed(text):
    with pytest.raises(MalformedDigest):
        Digest.parse(text)


@steady
@given(st.text(st.characters(), max_size=70))
def test_no_text_is_taken_for_a_digest_by_mistake(text):
    if len(text) == 64 and set(text) <= set(HEX):
        assert str(Digest.parse(text)) == text.lower()
    else:
        with pytest.raises(MalformedDigest):
            Digest.parse(text)


@steady
@given(RAW, st.integers(0, 63), st.characters())
def test_one_strange_character_is_enough(raw, place, strange):
    text = raw.hex()
    changed = text[:place] + strange + text[place + 1 :]
    if strange in HEX:
        assert str(Digest.parse(changed)) == changed.lower()
    else:
        with pytest.raises(MalformedDigest):
            Digest.parse(changed)


def test_a_digest_is_shown_by_its_digits():
    assert Digest.parse(GOOD).raw.hex() in repr(Digest.parse(GOOD))
