"""What twistd makes its service of: nothing is opened before the standard descriptors are there."""

from twisted.application.service import Service

from stor.options import Options
from stor.standard import hold_standard

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> Service:  # noqa: N802 - the name that twistd calls
    """The service that `options` ask for. Ends the process with status 1 when they are wrong."""
    hold_standard()
    from stor import service  # noqa: PLC0415 - importing it installs the reactor, which opens files

    return service.makeService(options)
