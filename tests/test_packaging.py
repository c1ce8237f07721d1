"""What stands in more than one place of the Debian package says the same everywhere."""

import re
import subprocess
from pathlib import Path

import pytest

from stor import __version__
from stor.cli import main as cli
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


def test_the_example_configuration_needs_nothing_but_a_password():
    example = parse((DEBIAN / "examples" / "config.json").read_text())
    assert not example.warnings
    # The service may write there without a drop-in.
    assert all(root.startswith("/srv/") for roots in example.sets for root in roots)
    assert "ReadWritePaths=-/mnt -/srv" in (DEBIAN / "stor.service").read_text().splitlines()


def test_the_service_may_ask_whether_a_sample_is_in_memory():
    """No group of system calls has mincore(2), which `stor.disk.page_cache` asks."""
    unit = (DEBIAN / "stor.service").read_text()
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
