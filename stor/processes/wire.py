"""Messages between two processes of one Stor, over a socket that nobody else has."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IFileDescriptorReceiver, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from stor.errors import NoRoom, StorError, Unavailable
from stor.mirror.repair import Absent, Unmendable
from stor.threads import within

#: What a reply may be that is a failure; any other is `Unavailable` for who has asked.
_FAILURES: dict[str, type[StorError]] = {
    kind.__name__: kind for kind in (Absent, Unmendable, NoRoom, Unavailable)
}


class Tell(Protocol):
    """Says something to another process, without an answer."""

    def __call__(self, message: str, *arguments: object) -> None:
        """`message` is what the other one's table of messages calls it."""


#: What is done with each message. What it returns, or what a Deferred that it returns fires
#: with, is the reply to one that asks.
Messages = dict[str, Callable[..., Any]]


@implementer(IFileDescriptorReceiver)
class Wire(Int32StringReceiver):
    """One end of the socket. Messages arrive in the order in which they were sent.

    They are pickled, which is safe between processes that are one program of one user: whoever
    could write to this socket could as well write to their memory.
    """

    log = Logger()
    MAX_LENGTH = 256 * 1024 * 1024

    def __init__(self, messages: Messages, clock: IReactorTime, lost: Callable[[], None]) -> None:
        """`lost` is called when the other process has ended."""
        self._messages = messages
        self._clock = clock
        self._lost = lost
        self._asked = 0
        self._waiting: dict[int, Deferred[Any]] = {}
        self._open = True
        #: Descriptors that came with the messages so far, for the handler of the next one to take.
        self.descriptors: list[int] = []

    def tell(self, message: str, *arguments: object) -> None:
        """Send a message. Nothing happens when the other process has ended."""
        self._send(message, None, arguments)

    def ask(
        self, seconds: float, message: str, *arguments: object, descriptors: Sequence[int] = ()
    ) -> Deferred[Any]:
        """Send a message that asks for a reply; fires with it.

        `descriptors` go with it, as copies (unix(7), SCM_RIGHTS). Fails with `Unavailable` when no
        reply comes within so many seconds, and with what the other process failed with.
        """
        if not self._open:
            return fail(Unavailable("the other process has ended"))
        self._asked += 1
        waiter: Deferred[Any] = Deferred()
        self._waiting[self._asked] = waiter
        for descriptor in descriptors:
            self.transport.sendFileDescriptor(descriptor)
        self._send(message, self._asked, arguments)
        return within(self._clock, seconds, waiter)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """A message, or a reply, is complete."""
        message, number, arguments = pickle.loads(string)  # noqa: S301 - see the class
        if message is None:
            waiter = self._waiting.pop(number)
            failure, reply = arguments
            if failure is None:
                waiter.callback(reply)
            else:
                waiter.errback(_FAILURES.get(failure, Unavailable)(reply))
            return
        handling = maybeDeferred(self._messages[message], *arguments)
        if number is None:
            handling.addErrback(self._bug, message)
        else:
            handling.addCallbacks(
                self._reply,
                self._fail,
                callbackArgs=(number,),
                errbackArgs=(number, message),
            )

    def fileDescriptorReceived(self, descriptor: int) -> None:  # noqa: N802
        """A descriptor came with the next message."""
        self.descriptors.append(descriptor)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """The other process has ended."""
        self._open = False
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.errback(Unavailable("the other process has ended"))
        self._lost()

    def close(self) -> None:
        """End the connection, which the other process sees as our end."""
        self.transport.loseConnection()

    def _send(self, message: str | None, number: int | None, arguments: object) -> None:
        if self._open:
            self.sendString(pickle.dumps((message, number, arguments)))

    def _reply(self, reply: object, number: int) -> None:
        self._send(None, number, (None, reply))

    def _fail(self, failure: Failure, number: int, message: str) -> None:
        if not isinstance(failure.value, StorError):
            self._bug(failure, message)
        self._send(None, number, (type(failure.value).__name__, str(failure.value)))

    def _bug(self, failure: Failure, message: str) -> None:
        self.log.failure("On a message of another process: {message}", failure, message=message)
