"""What the README tells a newcomer to do works as it is written there, in an empty clone."""

import os
import re
import shutil
import signal
import subprocess

import pytest

from stor.config import parse
from tests.integration.process import REPOSITORY, environment, poll

README = (REPOSITORY / "README.md").read_text()
START, USE, TEST = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

#: Installing everything from the registry takes as long as the registry does.
INSTALL_SECONDS = 240.0


@pytest.fixture
def clone(tmp_path):
    """The files that are under version control, or will be, and nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_a_newcomer_stores_a_first_sample(clone):
    log = (clone / "terminal.log").open("w+")
    # The variables of the make that runs the tests would be those of the newcomer's make too.
    variables = {k: v for k, v in environment().items() if not k.startswith(("MAKE", "MFLAGS"))}
    make = subprocess.Popen(
        START, shell=True, cwd=clone, env=variables, stdout=log, stderr=log, start_new_session=True
    )

    def said():
        text = (clone / "terminal.log").read_text()
        assert make.poll() is None, text
        return text if "Try:" in text else None

    try:
        printed = poll(said, INSTALL_SECONDS, "the greeting")
        for commands in (USE, "\n".join(re.findall(r"^  (.*curl .*)$", printed, re.MULTILINE))):
            used = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands],
                cwd=clone,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert used.returncode == 0, used
            assert re.match(r'\["/.*\.dat", "/.*\.dat"\]', used.stdout)
        assert (
            "OK"
            in subprocess.run(
                ["curl", "-s", "http://127.0.0.1:8080/status"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    finally:
        os.killpg(make.pid, signal.SIGTERM)
        make.wait(20)
        log.close()


def test_ci_runs_the_command_that_the_readme_names():
    assert TEST.strip() in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_the_readme_s_configuration_is_valid():
    (configuration,) = re.findall(r"^```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert parse(configuration).sets == (("/mnt/data1", "/mnt/data2"), ("/mnt/data3", "/mnt/data4"))
