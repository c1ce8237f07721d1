"""File systems of a test: in memory, ext4 and XFS in files, one that hangs when told to."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.integration.process import MIB, poll

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def program(name, package):
    """The program's path; the test fails when it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install {package}", pytrace=False)
    return found


def used(path):
    """The bytes and inodes that are taken on the file system of `path`."""
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


def free_bytes(path):
    """What is left on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class Disk:
    """A file system that is mounted at `point` and can be taken away from there.

    The same file system stays mounted at `kept`, where nobody but the test looks; so what is on it
    outlives `unmount`.
    """

    def __init__(self, point, kept):
        self.point = point
        self.kept = kept
        self._bare_fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
        self._bare_before = self._bare()
        self.mount()

    def __str__(self):
        return str(self.point)

    def mount(self, other=None):
        """Mount the file system, or that of an `other` disk, at the mount point."""
        _run("mount", "--bind", self.kept if other is None else other.kept, self.point)

    def unmount(self):
        """Take it away from its mount point at once, whoever uses it (umount(8), --lazy)."""
        _run("umount", "--lazy", self.point)

    def remount(self, option):
        """Change how it is mounted there, such as to `ro` (mount(8), remount).

        While a file there is open for writing it is busy (mount(2), EBUSY); under a load that comes
        and goes.
        """

        def remounted():
            error = _error_of("mount", "-o", f"remount,bind,{option}", self.point)
            if error and "busy" not in error:
                pytest.fail(error, pytrace=False)
            return not error

        poll(remounted, what=f"a moment in which {self.point} is not busy")

    def assert_bare_untouched(self):
        """Nothing is, or ever was, in the directory below the mount point.

        Making an entry changes the directory's times (inode(7)), also when it is removed again.
        """
        assert self._bare() == self._bare_before, f"written below the mount point {self.point}"

    def _bare(self):
        status = os.fstat(self._bare_fd)
        return os.listdir(self._bare_fd), status.st_mtime_ns, status.st_ctime_ns, status.st_nlink

    def close(self):
        os.close(self._bare_fd)


class HangingDisk(Disk):
    """A disk on which every operation hangs while it is `hung`.

    bindfs shows the file system at `kept` at the mount point; while its process is stopped, nobody
    answers the kernel. It has no O_TMPFILE.
    """

    def __init__(self, point, kept):
        super().__init__(point, kept)
        self.unmount()
        device = os.stat(point).st_dev
        command = [program("bindfs", "bindfs"), "-f", str(kept), str(point)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            poll(lambda: self._runs() and os.stat(point).st_dev != device, what="a bindfs mount")
            poll(lambda: self._state() == "S", what="an idle bindfs")
            self._idle = self._system_call()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def hung(self):
        """The disk hangs, and answers again afterwards."""
        self._hang()
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self):
        # Killed, it makes whatever hangs fail (ENOTCONN).
        self._process.kill()
        self._process.communicate()
        super().close()

    def _hang(self):
        # A request that bindfs has taken up could not be interrupted, not even by SIGKILL: stop it
        # while it waits for the next one.
        for _ in range(1000):
            self._process.send_signal(signal.SIGSTOP)
            poll(lambda: self._state() == "T", what="a stopped bindfs")
            if self._system_call() == self._idle:
                return
            self._process.send_signal(signal.SIGCONT)
        raise AssertionError("bindfs was never found idle")

    def _runs(self):
        if self._process.poll() is not None:
            pytest.fail(f"bindfs: {self._process.stderr.read().strip()}", pytrace=False)
        return True

    def _state(self):
        return self._proc("stat").rpartition(") ")[2][0]

    def _system_call(self):
        """The number of the system call that it is in (proc(5), syscall)."""
        return self._proc("syscall").split()[0]

    def _proc(self, name):
        return Path(f"/proc/{self._process.pid}/{name}").read_text()


class Mounts:
    """The file systems of one test. On leaving, all are unmounted, whoever uses them still."""

    def __init__(self, directory):
        if os.geteuid() != 0:
            pytest.fail("mounting needs root: run this test as root", pytrace=False)
        self._parent = directory
        self._directory = None
        self._mounted = []
        self._disks = []

    def __enter__(self):
        # On the file system of `/`, as an unmounted disk is known by that.
        device = os.stat("/").st_dev
        parents = [path for path in (self._parent, "/var/tmp") if os.stat(path).st_dev == device]
        if not parents:
            pytest.fail(f"neither {self._parent} nor /var/tmp is on the file system of /")
        self._directory = Path(tempfile.mkdtemp(prefix="mounts-", dir=parents[0]))
        return self

    def __exit__(self, *exception):
        for disk in self._disks:
            disk.close()
        for point in reversed(self._mounted):
            # A mount point can have more than one file system mounted on it, or none.
            while _mounted(point):
                _run("umount", "--lazy", point)
        shutil.rmtree(self._directory)

    def tmpfs(self, name, mib=64, options="", below=None):
        """A disk in memory of `mib` MiB; `options` as in tmpfs(5).

        Its mount point is on the file system of `/`, or in the directory `below`.
        """
        return self._disk(Disk, name, self._tmpfs(name, mib, options), below)

    def ext4(self, name, mib=64, block_bytes=4096):
        """A disk with ext4 on it, in a file in memory of `mib` MiB."""
        make = program("mkfs.ext4", "e2fsprogs"), "-q", "-m", "0", "-b", block_bytes
        disk = self._in_a_file(name, mib, make)
        shutil.rmtree(disk.kept / "lost+found")
        return disk

    def xfs(self, name, mib=320):
        """A disk with XFS on it, in a file in memory of `mib` MiB; it takes no less than 300."""
        return self._in_a_file(name, mib, (program("mkfs.xfs", "xfsprogs"), "-q"))

    def _in_a_file(self, name, mib, make):
        image = self._tmpfs(f"{name}.image", mib + 8) / "image"
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        _run(*make, image)
        kept = self._directory_for(f"{name}.kept")
        _run("mount", "-o", "loop", image, kept)
        self._mounted.append(kept)
        return self._disk(Disk, name, kept)

    def hanging(self, name, mib=64):
        """A disk in memory that can be made to hang."""
        return self._disk(HangingDisk, name, self._tmpfs(name, mib))

    def _disk(self, kind, name, kept, below=None):
        point = self._directory_for(name, below)
        self._mounted.append(point)
        disk = kind(point, kept)
        self._disks.append(disk)
        return disk

    def _tmpfs(self, name, mib, options=""):
        point = self._directory_for(f"{name}.kept")
        size = f"size={mib}m{options and ','}{options}"
        _run("mount", "-t", "tmpfs", "-o", size, "stor-test", point)
        self._mounted.append(point)
        return point

    def _directory_for(self, name, below=None):
        path = Path(below or self._directory) / name
        path.mkdir(parents=True)
        return path


def _mounted(point):
    """Whether something is mounted there, be it dead (proc(5), mountinfo)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return str(point) in [line.split()[4] for line in lines]


def _run(program_path, *arguments):
    error = _error_of(program_path, *arguments)
    if error:
        pytest.fail(error, pytrace=False)


def _error_of(program_path, *arguments):
    """Run it; what it says when it fails, else `None`."""
    name = program(program_path, "mount")
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    command = " ".join([program_path, *map(str, arguments)])
    return f"{command}: {done.stderr.strip()}"
