"""The configuration: what it means, and every way in which it can be wrong."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stor.config import GIB, S3, Config, ConfigError, Credentials, Statsite, load, parse

EXAMPLE = Path(__file__).parent.parent / "config.json.example"
LEAST = {"storage_pairs": [["/mnt/data1", "/mnt/data2"]], "basic_auth": "writer:pass"}
S3_KEYS = {"access_key": "AK", "secret_key": "SK", "host": "https://s3.example"}
WITH_S3 = {"s3_enabled": True, "s3_credentials": S3_KEYS}
SETS = 'a list of sets such as [["/mnt/data1", "/mnt/data2"]]'
WHO = '"user:password", a list of such, or {"htpasswd": "/path"}'
NO_PATH = "a name, an address, name:port or an http(s) URL without a path"


def configured(**changes):
    """The least configuration with some keys changed; `None` takes a key away."""
    data = {key: value for key, value in {**LEAST, **changes}.items() if value is not None}
    return parse(json.dumps(data))


def faults(text):
    with pytest.raises(ConfigError) as caught:
        parse(text if isinstance(text, str) else json.dumps(text))
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def test_the_example_is_valid_as_it_stands():
    config = load(str(EXAMPLE))
    assert config.sets == (("/mnt/data1", "/mnt/data2"), ("/mnt/data3", "/mnt/data4"))
    assert config.writable.pattern == "data[12]"
    assert config.credentials == (Credentials("writer", "writer_pass"),)
    assert config.s3 == S3("S3_ACCESS_KEY", "S3_SECRET_KEY", "http://S3_HOST", "samples", None)
    assert config.s3_write == "never"
    assert config.lookup_order == ("disk", "s3")
    assert config.memcached_servers == (("MEMCACHED_SERVER1", 11211),)
    assert config.statsite == Statsite("STATSITE_HOST", 8125, "stor.dev", 0.1)
    assert config.listen == ("tcp:8080",)
    assert (config.workers, config.reserve_bytes, config.max_upload_bytes) == (1, GIB, None)
    assert config.require_mount
    of_s3, of_password = config.warnings
    assert "S3_HOST has no scheme" in of_s3
    assert "the password of writer is the example's" in of_password


def test_what_is_not_given_has_its_default():
    expected = Config(LEAST["storage_pairs"], re.compile(".*"), (Credentials("writer", "pass"),))
    config = configured()
    assert config.sets == (("/mnt/data1", "/mnt/data2"),)
    for name in Config.__annotations__:
        if name != "sets":
            assert getattr(config, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({"storage_pairs": [["/a"], ["/b", "/c", "/d/"]]}, "sets", (("/a",), ("/b", "/c", "/d"))),
        ({"writable_pairs_regex": "x|y"}, "writable", re.compile("x|y")),
        ({"basic_auth": "u:p:q "}, "credentials", (Credentials("u", "p:q "),)),
        (
            {"basic_auth": ["u:p", "u:q"]},
            "credentials",
            (Credentials("u", "p"), Credentials("u", "q")),
        ),
        ({"read_auth": True}, "read_auth", True),
        ({"public_listing": True}, "public_listing", True),
        ({"status_auth": True}, "status_auth", True),
        ({"trusted_proxies": ["::1", "unix"]}, "trusted_proxies", ("::1", "unix")),
        ({"trusted_proxies": ["10.0.0.0/8"]}, "trusted_proxies", ("10.0.0.0/8",)),
        ({"index": False}, "index", False),
        ({"memcached_servers": ["a", "b:1"]}, "memcached_servers", (("a", 11211), ("b", 1))),
        (
            {"memcached_servers": ["[::1]", "[::1]:9"]},
            "memcached_servers",
            (("::1", 11211), ("::1", 9)),
        ),
        ({"memcached_servers": []}, "memcached_servers", ()),
        ({"lookup_order": ["disk"]}, "lookup_order", ("disk",)),
        ({"lookup_order": ["s3", "disk"]}, "lookup_order", ("s3", "disk")),
        (
            {**WITH_S3, "s3_write": "only", "storage_pairs": [], "lookup_order": ["s3"]},
            "lookup_order",
            ("s3",),
        ),
        ({"statsite": {"host": "h"}}, "statsite", Statsite("h", 8125, "stor", 1)),
        ({"statsite": {"host": "h", "port": 9}}, "statsite", Statsite("h", 9, "stor", 1)),
        ({"listen": ["tcp:80", "unix:/run/x"]}, "listen", ("tcp:80", "unix:/run/x")),
        ({"workers": 4}, "workers", 4),
        ({"reserve_bytes": 0}, "reserve_bytes", 0),
        ({"max_upload_bytes": 10**12}, "max_upload_bytes", 10**12),
        ({"max_uploads": 1}, "max_uploads", 1),
        ({"max_connections": 50}, "max_connections", 50),
        ({"require_mount": False}, "require_mount", False),
        ({"s3_enabled": False, "s3_credentials": S3_KEYS}, "s3", None),
        (WITH_S3, "s3", S3("AK", "SK", "https://s3.example")),
        ({**WITH_S3, "s3_write": "copy"}, "s3_write", "copy"),
        ({**WITH_S3, "s3_write": "only", "storage_pairs": None}, "sets", ()),
        ({"secret": "anything"}, "warnings", ()),
    ],
)
def test_a_key_means_what_it_says(changes, name, expected):
    assert getattr(configured(**changes), name) == expected


@pytest.mark.parametrize(
    ("host", "endpoint", "warns"),
    [
        ("s3.example", "http://s3.example", True),
        ("s3.example:7480", "http://s3.example:7480", True),
        ("[::1]:7480", "http://[::1]:7480", True),
        ("http://s3.example", "http://s3.example", False),
        ("https://s3.example:1/", "https://s3.example:1", False),
        ("2001:db8::7", "http://[2001:db8::7]", True),
        ("[2001:db8::7]", "http://[2001:db8::7]", True),
        ("https://[2001:db8::7]:7480/", "https://[2001:db8::7]:7480", False),
        ("http://2001:db8::7", "http://[2001:db8::7]", False),
        ("https://bücher.example", "https://xn--bcher-kva.example", False),
    ],
)
def test_a_bare_s3_host_means_http_and_warns(host, endpoint, warns):
    config = configured(s3_enabled=True, s3_credentials={**S3_KEYS, "host": host})
    assert config.s3.endpoint == endpoint
    assert len(config.warnings) == warns
    assert all("s3_credentials.host" in warning for warning in config.warnings)


@pytest.mark.parametrize("key", ["log", "cleanup_tempdir_period", "rabbitmq_uri"])
def test_a_retired_key_warns(key):
    (warning,) = configured(**{key: "anything"}).warnings
    assert warning == f"{key}: does nothing in this Stor"


FAULTS = [
    ({"storage_pairs": None}, f"storage_pairs: missing, expected {SETS}"),
    ({"storage_pairs": "/a"}, f'storage_pairs: expected {SETS}, found "/a"'),
    ({"storage_pairs": []}, f"storage_pairs: expected {SETS}, found []"),
    (
        {"storage_pairs": [[]]},
        "storage_pairs[0]: expected a list of one or more absolute paths, found []",
    ),
    (
        {"storage_pairs": [["/a"], "/b"]},
        'storage_pairs[1]: expected a list of one or more absolute paths, found "/b"',
    ),
    (
        {"storage_pairs": [["/a"], ["mnt/data3"]]},
        'storage_pairs[1][0]: expected an absolute path, found "mnt/data3"',
    ),
    ({"storage_pairs": [["/a", 5]]}, "storage_pairs[0][1]: expected an absolute path, found 5"),
    (
        {"storage_pairs": [["/a\0"]]},
        'storage_pairs[0][0]: expected an absolute path, found "/a\\u0000"',
    ),
    ({"writable_pairs_regex": 1}, "writable_pairs_regex: expected a regular expression, found 1"),
    (
        {"writable_pairs_regex": "a("},
        "writable_pairs_regex: expected a regular expression "
        '(missing ), unterminated subpattern at position 1), found "a("',
    ),
    ({"basic_auth": None}, f"basic_auth: missing, expected {WHO}"),
    ({"basic_auth": True}, f"basic_auth: expected {WHO}, found true"),
    ({"basic_auth": []}, f"basic_auth: expected {WHO}, found a list"),
    ({"basic_auth": ["a:b", "c"]}, 'basic_auth[1]: expected "user:password", found another text'),
    ({"basic_auth": ["a:b", 5]}, 'basic_auth[1]: expected "user:password", found 5'),
    ({"basic_auth": {}}, "basic_auth.htpasswd: expected an absolute path, found null"),
    (
        {"basic_auth": {"htpasswd": "users"}},
        'basic_auth.htpasswd: expected an absolute path, found "users"',
    ),
    (
        {"basic_auth": {"htpasswd": "/does/not/exist"}},
        "basic_auth.htpasswd: /does/not/exist: No such file or directory",
    ),
    ({"read_auth": "yes"}, 'read_auth: expected true or false, found "yes"'),
    ({"public_listing": "no"}, 'public_listing: expected true or false, found "no"'),
    (
        {"trusted_proxies": "::1"},
        "trusted_proxies: expected a list of addresses, networks such as "
        '"10.0.0.0/8", and "unix", found "::1"',
    ),
    *(
        (
            {"trusted_proxies": ["::1", wrong]},
            'trusted_proxies[1]: expected an address, a network such as "10.0.0.0/8", or "unix", '
            f"found {shown}",
        )
        for wrong, shown in [("proxy1", '"proxy1"'), ("10.0.0.1/8", '"10.0.0.1/8"'), (7, "7")]
    ),
    ({"index": "no"}, 'index: expected true or false, found "no"'),
    ({"s3_enabled": "yes"}, 's3_enabled: expected true or false, found "yes"'),
    (
        {"s3_enabled": True},
        "s3_credentials: missing, expected an object with access_key, secret_key and host",
    ),
    (
        {"s3_enabled": True, "s3_credentials": {"access_key": "a", "secret_key": "s"}},
        "s3_credentials.host: missing, expected a text that is not empty",
    ),
    (
        {"s3_credentials": {**S3_KEYS, "host": ""}},
        's3_credentials.host: expected a text that is not empty, found ""',
    ),
    (
        {"s3_credentials": {**S3_KEYS, "host": "h/p"}},
        f's3_credentials.host: expected {NO_PATH}, found "h/p"',
    ),
    (
        {"s3_credentials": {**S3_KEYS, "host": "http://h/p"}},
        f's3_credentials.host: expected {NO_PATH}, found "http://h/p"',
    ),
    *(
        (
            {"s3_credentials": {**S3_KEYS, "host": host}},
            f's3_credentials.host: expected {NO_PATH}, found "{host}"',
        )
        for host in (
            "http://",
            "ftp://h",
            "h:0",
            "h:65536",
            "[::g]",
            "[h]",
            "a@h",
            "http://u:p@h",
            "a..b",
        )
    ),
    (
        {"s3_credentials": {**S3_KEYS, "bucket": 1}},
        "s3_credentials.bucket: expected a text that is not empty, found 1",
    ),
    *(
        (
            {
                "s3_enabled": True,
                "s3_credentials": {**S3_KEYS, "host": "https://h", "ca_file": path},
            },
            f"s3_credentials.ca_file: {fault}",
        )
        for path, fault in [
            ("/does/not/exist", "/does/not/exist: No such file or directory"),
            ("/dev/null", 'expected a file with certificates (PEM), found "/dev/null"'),
            (__file__, f'expected a file with certificates (PEM), found "{__file__}"'),
        ]
    ),
    (
        {"s3_credentials": {**S3_KEYS, "hosts": "h"}},
        's3_credentials.hosts: unknown key, did you mean "host"?',
    ),
    ({"s3_write": "always"}, 's3_write: expected one of "never", "copy", "only", found "always"'),
    ({"s3_write": "copy"}, 's3_write: expected "never" without s3_enabled, found "copy"'),
    (
        {"lookup_order": ["tape"]},
        'lookup_order: expected a list of "disk" and "s3", each at most once, found ["tape"]',
    ),
    (
        {"lookup_order": ["s3"]},
        'lookup_order: expected a list with "disk", where samples are stored, found ["s3"]',
    ),
    (
        {**WITH_S3, "s3_write": "only", "storage_pairs": [], "lookup_order": ["disk"]},
        'lookup_order: expected a list with "s3", where samples are stored, found ["disk"]',
    ),
    (
        {"lookup_order": ["s3", "s3"]},
        'lookup_order: expected a list of "disk" and "s3", each at most once, found ["s3", "s3"]',
    ),
    (
        {"memcached_servers": "a"},
        'memcached_servers: expected a list of host or host:port, found "a"',
    ),
    (
        {"memcached_servers": ["a", "a:0"]},
        'memcached_servers[1]: expected host or host:port, found "a:0"',
    ),
    (
        {"memcached_servers": ["a:1:2"]},
        'memcached_servers[0]: expected host or host:port, found "a:1:2"',
    ),
    (
        {"statsite": "h"},
        'statsite: expected an object with host, port, prefix and sample_rate, found "h"',
    ),
    ({"statsite": {}}, "statsite.host: missing, expected a host name"),
    (
        {"statsite": {"host": "h", "port": 0}},
        "statsite.port: expected a whole number from 1 up to 65535, found 0",
    ),
    ({"statsite": {"host": "h", "prefix": 1}}, "statsite.prefix: expected a text, found 1"),
    (
        {"statsite": {"host": "h", "sample_rate": 2}},
        "statsite.sample_rate: expected a number above 0 and up to 1, found 2",
    ),
    (
        {"statsite": {"host": "h", "sample_rate": True}},
        "statsite.sample_rate: expected a number above 0 and up to 1, found true",
    ),
    (
        {"statsite": {"host": "h", "rate": 1}},
        'statsite.rate: unknown key, did you mean "sample_rate"?',
    ),
    ({"listen": []}, 'listen: expected a list of endpoints such as ["tcp:8080"], found []'),
    (
        {"listen": ["8080"]},
        'listen[0]: expected a Twisted endpoint such as "tcp:8080", found "8080"',
    ),
    ({"workers": 0}, "workers: expected a whole number from 1 up to 128, found 0"),
    ({"workers": 1.5}, "workers: expected a whole number from 1 up to 128, found 1.5"),
    ({"workers": True}, "workers: expected a whole number from 1 up to 128, found true"),
    (
        {"reserve_bytes": -1},
        "reserve_bytes: expected a number of bytes from 0 on, or a text such as "
        '"100 GB" or "8 MiB", found -1',
    ),
    ({"max_uploads": 0}, "max_uploads: expected a whole number from 1 on, found 0"),
    ({"max_connections": 0}, "max_connections: expected a whole number from 1 on, found 0"),
    *(
        (
            {"max_upload_bytes": wrong},
            "max_upload_bytes: expected a number of bytes from 1 on, or a text such as "
            f'"100 GB" or "8 MiB", found {shown}',
        )
        for wrong, shown in [("1G", '"1G"'), (0, "0"), ("0 B", '"0 B"'), (True, "true")]
    ),
    ({"require_mount": "no"}, 'require_mount: expected true or false, found "no"'),
    ({"storage_pair": []}, 'storage_pair: unknown key, did you mean "storage_pairs"?'),
    (
        {"writeable_pairs_regex": ""},
        'writeable_pairs_regex: unknown key, did you mean "writable_pairs_regex"?',
    ),
    ({"memcache_server": ""}, 'memcache_server: unknown key, did you mean "memcached_servers"?'),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS)
def test_a_fault_says_where_what_is_found_and_what_expected(changes, fault):
    with pytest.raises(ConfigError) as caught:
        configured(**changes)
    assert caught.value.faults == [fault]


def test_all_faults_are_listed_at_once():
    changes = {
        "storage_pairs": [["a"], []],
        "basic_auth": "nobody",
        "workers": 0,
        "statsite": {"port": 0},
        "lisen": [],
    }
    starts = [
        'lisen: unknown key, did you mean "listen"?',
        'storage_pairs[0][0]: expected an absolute path, found "a"',
        "storage_pairs[1]: expected a list of one or more absolute paths, found []",
        f"basic_auth: expected {WHO}, found",
        "statsite.port: expected a whole number from 1 up to 65535, found 0",
        "statsite.host: missing, expected a host name",
        "workers: expected a whole number from 1 up to 128, found 0",
    ]
    found = faults(changes)
    assert len(found) == len(starts)
    for start in starts:
        assert any(fault.startswith(start) for fault in found)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        *((text, "not JSON: ") for text in ("", "{", "{'a': 1}", '{"a": 1,}', "\ufeff{}", "\0")),
        ("[]", "expected a JSON object, found []"),
        ("null", "expected a JSON object, found null"),
        ("[" * 100_000, "not a configuration: nested too deeply"),
        ("1" * 5000, "not JSON: "),
        ('{"workers": 1, "workers": 2}', 'not JSON: duplicate key "workers"'),
        ('{"statsite": {"host": "a", "host": "a"}}', 'not JSON: duplicate key "host"'),
    ],
)
def test_what_is_no_configuration_at_all_is_one_fault(text, start):
    (fault,) = faults(text)
    assert fault.startswith(start)


def test_two_roots_that_are_one_directory_are_a_fault(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    for other in (real, link, f"{real}/", f"{tmp_path}/x/../real", f"{link}/."):
        (fault,) = faults({**LEAST, "storage_pairs": [[str(real)], ["/b", str(other)]]})
        assert fault.startswith(
            "storage_pairs[1][1]: expected a directory of its own (it is the same as "
            'storage_pairs[0][0]), found "/'
        )


def test_roots_that_do_not_exist_are_no_fault(tmp_path):
    roots = [[str(tmp_path / "gone1"), str(tmp_path / "gone2")]]
    assert configured(storage_pairs=roots).sets == (tuple(roots[0]),)


PASSWORD = "correct-horse"
SECRETS = [
    {"basic_auth": PASSWORD},
    {"basic_auth": f":{PASSWORD}"},
    {"basic_auth": ["writer", PASSWORD]},
    {"basic_auth": {"writer": PASSWORD}},
    {"s3_enabled": True, "s3_credentials": f"AK:{PASSWORD}"},
    {"s3_enabled": True, "s3_credentials": ["AK", PASSWORD]},
    {"s3_credentials": {**S3_KEYS, "secret_key": [PASSWORD]}},
    {"s3_credentials": {**S3_KEYS, "secret": PASSWORD}},
    {"secret": [PASSWORD]},
    {"basic_aut": f"writer:{PASSWORD}"},
]


@pytest.mark.parametrize("changes", SECRETS)
def test_no_fault_shows_a_secret(changes):
    assert PASSWORD not in "".join(faults({**LEAST, **changes}))


def test_a_secret_that_is_no_text_is_a_fault():
    (fault,) = faults({**LEAST, "secret": 5})
    assert fault.startswith("secret: expected a text, found ")


def test_no_repr_shows_a_secret():
    keys = {**S3_KEYS, "secret_key": PASSWORD}
    config = configured(basic_auth=f"u:{PASSWORD}", s3_enabled=True, s3_credentials=keys)
    assert config.credentials[0].password == config.s3.secret_key == PASSWORD
    assert PASSWORD not in repr(config)
    assert PASSWORD not in str(config)


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_bytes(b'{"basic_auth": "\xff"}')
    for path in (tmp_path / "absent", tmp_path, bad):
        with pytest.raises(ConfigError) as caught:
            load(str(path))
        (fault,) = caught.value.faults
        assert fault.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("key", "variable", "expected"),
    [
        ("/var/lib/stor", "/run/other", "/var/lib/stor"),
        (None, "/run/one", "/run/one"),
        (None, "/run/one:/run/two", "/run/one"),
        (None, None, "{path}/stor-state"),
    ],
)
def test_where_the_state_directory_is(tmp_path, key, variable, expected):
    path = tmp_path / "stor.json"
    path.write_text(json.dumps({**LEAST, **({"state_directory": key} if key else {})}))
    environment = {} if variable is None else {"STATE_DIRECTORY": variable}
    chosen = load(str(path), environment=environment)
    assert chosen.state_directory == expected.format(path=tmp_path)


@pytest.mark.parametrize("below", ["", "/state", "/.stor/state"])
def test_the_state_directory_is_not_below_a_storage_root(tmp_path, below):
    path, root = tmp_path / "stor.json", LEAST["storage_pairs"][0][0]
    path.write_text(json.dumps({**LEAST, "state_directory": f"{root}{below}"}))
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: state_directory: expected a directory outside of the storage")
    assert fault.endswith(f"which is below {root}")


def test_the_faults_of_a_file_name_the_file(tmp_path):
    path = tmp_path / "stor.json"
    path.write_text(json.dumps({**LEAST, "workers": 0, "secret": 1}))
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert [fault.startswith(f"{path}: ") for fault in caught.value.faults] == [True, True]


KEYS = sorted({*LEAST, *WITH_S3, *S3_KEYS, *(fault[1].split(":")[0] for fault in FAULTS), "log"})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["/a", "/b", "a:1", "tcp:1", "only", "disk", "s3", "http://h"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(JSON, st.dictionaries(st.sampled_from(KEYS), JSON))
def test_whatever_the_json_says_nothing_but_faults_is_raised(value, changes):
    for text in (json.dumps(value), json.dumps({**LEAST, **changes})):
        with suppress(ConfigError):
            assert isinstance(parse(text), Config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("storage_pairs", [["/\ud800"]]),
        ("writable_pairs_regex", "a{99999999999999999999}"),
        ("writable_pairs_regex", "(" * 5000),
        ("writable_pairs_regex", "(?:" * 5000 + ")" * 5000),
    ],
)
def test_what_the_system_cannot_take_is_a_fault(key, value):
    (fault,) = faults({**LEAST, key: value})
    assert fault.startswith(key)


def test_however_deep_the_json_is_nothing_but_faults_is_raised():
    for depth in range(500, 1010):
        assert faults('{"workers": ' + "[" * depth + "]" * depth + "}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 GB", 100 * 10**9),
        ("8 MiB", 8 * 1024**2),
        ("8MiB", 8 * 1024**2),
        ("1.5 TB", 1_500_000_000_000),
        ("2 TiB", 2 * 1024**4),
        ("64 kB", 64_000),
        ("64 KiB", 65_536),
        ("1 PB", 10**15),
        ("512 B", 512),
        (" 1 GB ", 10**9),
        (4096, 4096),
    ],
)
def test_a_size_may_be_a_text(text, expected):
    for key in ("reserve_bytes", "max_upload_bytes", "spool_bytes", "cache_bytes"):
        assert getattr(configured(**{key: text}), key) == expected


@pytest.mark.parametrize(
    "text",
    ["", "GB", "1", "1 G", "-1 GB", "1,5 GB", "1 gb", "1 EB", "1.0005 kB", "0.3 B", "\u0661 GB"],
)
def test_what_is_no_size_is_a_fault(text):
    (fault,) = faults({**LEAST, "max_upload_bytes": text})
    assert fault.startswith("max_upload_bytes: expected a number of bytes from 1 on, or a text")


SETS = [["/mnt/a", "/mnt/b"], ["/mnt/c", "/mnt/d"]]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"storage_pairs": SETS, "writable_pairs_regex": "data"},
            'writable_pairs_regex: "data" matches no storage root: no set takes new samples',
        ),
        (
            {"storage_pairs": SETS, "writable_pairs_regex": "[abc]$"},
            "writable_pairs_regex: matches /mnt/c and not /mnt/d, which are of one set: the set "
            "takes no new samples",
        ),
        (
            {"storage_pairs": [["/mnt/a", "/mnt/a-2"], ["/mnt/a/b"]]},
            "storage_pairs: /mnt/a/b is below /mnt/a: expected disks that are mounted apart",
        ),
        (
            {"basic_auth": ["writer:writer_pass"]},
            "basic_auth: the password of writer is the example's, which everybody knows",
        ),
        ({"basic_auth": "bob:bob"}, "basic_auth: the password of bob is the user's name"),
        (
            {"read_auth": True, "public_listing": True},
            "public_listing: strangers may list the samples, which read_auth keeps from them",
        ),
        (
            {"status_auth": True, "public_listing": True},
            "public_listing: strangers may list the samples, and not see the pages (status_auth)",
        ),
        (
            {"trusted_proxies": ["unix", "::/0"]},
            "trusted_proxies: ::/0 is everybody: any client can say who it is",
        ),
        (
            {"listen": ["tcp:8080", "haproxy:tcp:8081"]},
            "listen[1]: haproxy:tcp:8081: nobody is believed who the client is, as trusted_proxies "
            "names no proxy",
        ),
        (
            WITH_S3 | {"lookup_order": ["disk"]},
            'lookup_order: S3 is enabled and never asked: expected "s3" in it',
        ),
    ],
)
def test_what_makes_no_sense_is_a_warning(changes, warning):
    assert configured(**changes).warnings == (warning,)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("tcp:65536", "tcp:port=70000", "ssl:99999:privateKey=k", "haproxy:tcp:65536"),
        *("tcp:-1", f"tcp:{'9' * 10}:interface=127.0.0.1"),
    ],
)
def test_a_port_that_there_is_not_is_a_fault(endpoint):
    (fault,) = faults({**LEAST, "listen": ["tcp:65535", endpoint]})
    expected = 'a Twisted endpoint such as "tcp:8080", with a port up to 65535'
    assert fault == f'listen[1]: expected {expected}, found "{endpoint}"'


@pytest.mark.parametrize("prefix", ["unix:", "unix:address=", "haproxy:unix:"])
@pytest.mark.parametrize(
    ("path", "known"),
    [
        *(("/" + "a" * 106, True), ("/" + "a" * 107, False)),
        *(("/" + "\u00e9" * 53, True), ("/" + "\u00e9" * 54, False)),
        *((r"/\:" + "a" * 105, True), (r"/\:" + "a" * 106, False)),
    ],
)
def test_a_unix_socket_whose_path_the_system_does_not_take_is_a_fault(prefix, path, known):
    data = {**LEAST, "listen": [f"{prefix}{path}:mode=660"], "trusted_proxies": ["unix"]}
    if known:
        assert parse(json.dumps(data)).listen == tuple(data["listen"])
    else:
        (fault,) = faults(data)
        assert fault.startswith(
            'listen[0]: expected a Twisted endpoint such as "tcp:8080", with a path of at most 107 '
            f'bytes, found "{prefix}/'
        )


@pytest.mark.parametrize("bucket", ["", "A B", "a/b", "..", ".", "a" * 256, "a\nb", "\u00e9"])
def test_what_cannot_be_a_bucket_is_a_fault(bucket):
    data = LEAST | WITH_S3 | {"s3_credentials": {**S3_KEYS, "bucket": bucket}}
    (fault,) = faults(data)
    assert fault.startswith("s3_credentials.bucket: expected the name of a bucket, found ")


@pytest.mark.parametrize("bucket", ["samples", "Samples_2.old-x", "7"])
def test_what_engines_call_their_buckets_is_none(bucket):
    data = LEAST | WITH_S3 | {"s3_credentials": {**S3_KEYS, "bucket": bucket}}
    assert parse(json.dumps(data)).s3.bucket == bucket


@pytest.mark.parametrize("prefix", ["a b", "a:b", "a|c", "a@1", "a\nb", "a#b"])
def test_a_prefix_that_statsd_takes_apart_is_a_warning(prefix):
    (warning,) = configured(statsite={"host": "h", "prefix": prefix}).warnings
    assert warning == (
        f"statsite.prefix: {json.dumps(prefix)} means something else to statsd: expected letters, "
        "digits, and any of . _ -"
    )


@pytest.mark.parametrize("prefix", ["", "stor", "stor.dev.", "Host-7_a"])
def test_a_prefix_of_plain_words_is_none(prefix):
    assert configured(statsite={"host": "h", "prefix": prefix}).warnings == ()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("STORAGE_PAIRS", 'STORAGE_PAIRS: unknown key, did you mean "storage_pairs"?'),
        ("Basic_Auth", 'Basic_Auth: unknown key, did you mean "basic_auth"?'),
        ("work\ners", 'work\\ners: unknown key, did you mean "workers"?'),
        ("x" * 5000, "x" * 76 + "...: unknown key, did you mean "),
    ],
)
def test_a_key_is_one_line_and_its_case_does_not_matter_to_what_is_near(key, said):
    (fault,) = faults({**LEAST, key: 1})
    assert fault.startswith(said)
