"""What stands in more than one place of the Debian package says the same everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stor import __version__
from stor.cli import main as cli
from stor.client.command import COMMANDS
from stor.config import parse

REPOSITORY = Path(__file__).parents[1]
DEBIAN = REPOSITORY / "debian"


def test_the_package_has_stor_s_version():
    version = re.match(r"stor \((\S+)\) ", (DEBIAN / "changelog").read_text())[1]
    # To dpkg a tilde comes before the end, as .dev and rc do to pip.
    assert version == re.sub(r"\.?(dev|a|b|rc)", r"~\1", __version__)


def test_the_manual_page_has_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = set(re.findall(r"^    ([a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE))
    manual = (DEBIAN / "stor.1").read_text().replace("\\-", "-")
    assert commands
    assert commands == set(re.findall(r"^\.TP\n\.B ([a-z][a-z-]*)$", manual, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_client_s_command_has_a_page_with_every_option(capsys, command):
    manual = (DEBIAN / f"stor-{command}.1").read_text().replace("\\-", "-")
    assert f"debian/stor-{command}.1" in (DEBIAN / "stor-client.manpages").read_text().split()
    described = set(re.findall(r"^\.(?:TP\n\.B\w*)(.*)$", manual, re.MULTILINE))
    assert set(re.findall(r"--[a-z-]+", " ".join(described))) == options(capsys, command)


def test_without_the_server_there_are_the_client_s_commands():
    """As where `stor-client` is installed alone."""
    program = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("bcrypt", "boto3", "crc32c", "klein", "prometheus_client", "werkzeug"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from stor.cli.main import main

sys.exit(main(sys.argv[1:]))
"""
    run = [sys.executable, "-c", program]
    helped = subprocess.run([*run, "--help"], capture_output=True, check=True, text=True).stdout
    assert re.findall(r"^    ([a-z][a-z-]*)", helped, re.MULTILINE) == list(COMMANDS)
    for command in COMMANDS:
        subprocess.run([*run, command, "--help"], capture_output=True, check=True)
    adopting = subprocess.run([*run, "adopt"], capture_output=True, check=False)
    assert adopting.returncode == 2


def test_what_the_client_needs_is_split_from_what_the_server_needs(tmp_path):
    source, target = tmp_path / "stor", tmp_path / "stor-client"
    site = "lib/python3.11/site-packages"
    requires = {
        "attrs": [],
        "treq": ["Twisted[tls]>=22"],
        "Twisted": ["zope.interface", "pyopenssl>=21; extra == 'tls'", "bcrypt; extra == 'conch'"],
        "zope.interface": [],
        "pyOpenSSL": [],
        "stor": ["klein", "treq"],
        "klein": ["Twisted", "bcrypt"],
        "bcrypt": [],
    }
    client = {"attrs", "treq", "twisted", "zope_interface", "pyopenssl", "stor"}
    files = {"bin/stor": True, "bin/python": True, "bin/twistd": False, "pyvenv.cfg": True}
    plugins = f"{site}/twisted/plugins"
    files |= {f"{plugins}/x.py": True, f"{plugins}/stor_plugin.py": False}
    files |= {f"{plugins}/dropin.cache": False, f"{plugins}/__pycache__/stor_plugin.pyc": False}
    for name, needed in requires.items():
        top = name.lower().replace(".", "_")
        info = source / site / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        metadata = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {one}" for one in needed)]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        (info / "RECORD").write_text(f"{top}/__init__.py,,\n{name}-1.dist-info/METADATA,,\n")
        files[f"{site}/{top}/__init__.py"] = files[f"{site}/{name}-1.dist-info/RECORD"] = (
            top in client
        )
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).touch()
    for info in (source / site).glob("*.dist-info"):
        top = info.name.removesuffix("-1.dist-info").lower().replace(".", "_")
        (info / "RECORD").write_text(f"{top}/__init__.py,,\n{info.name}/METADATA,,\n")
    subprocess.run([sys.executable, DEBIAN / "split", source, target], check=True)
    for file, moved in files.items():
        assert ((target / file).exists(), (source / file).exists()) == (moved, not moved), file


def test_the_example_configuration_needs_nothing_but_a_password():
    example = parse((DEBIAN / "examples" / "config.json").read_text())
    assert not example.warnings
    # The service may write there without a drop-in.
    assert all(root.startswith("/srv/") for roots in example.sets for root in roots)
    assert "ReadWritePaths=-/mnt -/srv" in (DEBIAN / "stor.service").read_text().splitlines()


def test_the_service_may_read_what_is_in_memory():
    """No group of system calls has mincore(2), which `stor.disk.page_cache` asks."""
    unit = (DEBIAN / "stor.service").read_text()
    # systemd refuses openat2(2) with either, as a filter cannot look into its arguments.
    refusing = re.findall(
        r"^(?:RestrictSUIDSGID|DynamicUser)=(?:yes|true|1|on)$", unit, re.MULTILINE
    )
    assert refusing == []
    allowed = re.findall(r"^SystemCallFilter=([^~\n]*)$", unit, re.MULTILINE)
    # @system-service has openat2 (@file-system), preadv2 (@basic-io) and mmap (@default).
    assert {"@system-service", "mincore"} <= set(" ".join(allowed).split())


def options(capsys, *command):
    """The long options that the command's help names."""
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return set(re.findall(r"--[a-z-]+(?=[ ,\]\n]|$)", capsys.readouterr().out)) | {"--help"}


def completed(*words):
    """What bash completes the last word to."""
    script = (
        f'. {DEBIAN}/bash-completion/stor; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_stor; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", script, "-", *words]
    return set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())


def test_bash_completes_every_command_and_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = set(re.findall(r"^    ([a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE))
    assert completed("stor", "") == commands | {"--help", "--version"}
    for command in commands:
        assert completed("stor", command, "--") == options(capsys, command)
    assert completed("stor", "put", "a", "--nu") == {"--null"}
