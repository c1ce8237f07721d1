"""The command line of `twistd stor`, and the configuration that it asks for."""

import os
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.endpoints import serverFromString
from twisted.python.usage import Options as UsageOptions

from stor import config
from stor.config import Config, ConfigError
from stor.quickstart import data_configuration


class Options(UsageOptions):
    """`twistd stor` on the command line."""

    optParameters = [  # noqa: RUF012 - the name and shape that Twisted asks for
        ["config", "c", None, "The configuration file (JSON); $CONFIG_FILE when not given."],
        ["data", "d", None, "Run without configuration, with all disks under this directory."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    @property
    def logs_to_output(self) -> bool:
        """Whether the log goes to the standard output that the process was started with."""
        twistd = getattr(self, "parent", None) or {}
        try:
            output = os.fstat(1)
        except OSError:
            return False
        # A daemon of twistd's has nothing there.
        nowhere = output.st_rdev == os.stat(os.devnull).st_rdev
        return not nowhere and twistd.get("logfile") in (None, "-")

    @property
    def logs_here(self) -> bool:
        """Whether twistd was told to stay in the foreground and to log nowhere else."""
        twistd = getattr(self, "parent", None) or {}
        foreground = bool(twistd.get("nodaemon")) and not twistd.get("logger")
        return foreground and self.logs_to_output

    def opt_listen(self, endpoint: str) -> None:
        """Listen on this Twisted endpoint, such as tcp:8080; instead of the configured ones."""
        self["listen"].append(endpoint)


def configuration(options: Options, environment: Mapping[str, str], reactor: Any) -> Config:
    """The configuration that the command line or `$CONFIG_FILE` names. Raises `ConfigError`."""
    path, data = options["config"], options["data"]
    if path and data:
        raise ConfigError(["--config and --data: expected one of them, found both"])
    faults = [
        f'--listen: expected a Twisted endpoint such as "tcp:8080", found "{given}": {reason}'
        for given in options["listen"]
        if (reason := endpoint_fault(given, reactor)) is not None
    ]
    if faults:
        raise ConfigError(faults)
    if data:
        return data_configuration(os.path.abspath(data), options["listen"])
    path = path or environment.get("CONFIG_FILE")
    if not path:
        raise ConfigError(["no configuration: give --config FILE, $CONFIG_FILE or --data DIR"])
    chosen = config.load(path, lambda given: endpoint_fault(given, reactor), environment)
    if options["listen"]:
        chosen = attrs.evolve(chosen, listen=tuple(options["listen"]))
    return chosen


def endpoint_fault(description: str, reactor: Any) -> str | None:
    """Why Twisted does not understand the description of an endpoint, `None` when it does."""
    try:
        serverFromString(reactor, description)
    except Exception as error:
        # Endpoint parsers raise whatever comes to them.
        return str(error) or type(error).__name__
    return None
