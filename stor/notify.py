"""Telling the service manager how the service is."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """Datagrams to systemd's notification socket (sd_notify(3)); without one, nothing happens.

    Never blocks and never raises: a service manager that does not listen is no reason to stop.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        """`address` as in `$NOTIFY_SOCKET`; `watchdog_seconds` without a word and one is killed."""
        self.watchdog_seconds = watchdog_seconds
        self._address = address
        self._socket: socket.socket | None = None
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Notifier":
        """What a process with this environment has been given (sd_watchdog_enabled(3))."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(microseconds) / 1e6 if microseconds.isdecimal() and ours else 0.0
        return cls(environment.get("NOTIFY_SOCKET"), watchdog or None)

    def send(self, **fields: object) -> None:
        """Send fields such as `READY=1`."""
        if self._socket is None or not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        # An address that begins with @ is in the abstract namespace (unix(7)).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError):
            self._socket.sendto(message.encode(), address)
