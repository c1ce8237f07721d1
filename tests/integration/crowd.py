"""A crowd of clients in a process of its own: `python -m tests.integration.crowd PORT IDLE SLOW`.

IDLE connections say nothing, SLOW ones upload a kilobyte a second. Prints "ready" when all are
there, and goes on until its standard input ends.
"""

import os
import resource
import select
import socket
import sys
import time

from tests.integration.process import MIB, sha_of, upload_head

PIECE_BYTES = 1000


def main(port, idle, slow):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(idle)]
    body = os.urandom(MIB)
    uploads = [socket.create_connection(("127.0.0.1", port)) for _ in range(slow)]
    for number, sock in enumerate(uploads):
        sock.sendall(upload_head(sha_of(b"%d" % number + body), MIB))
    print("ready", len(silent) + len(uploads), flush=True)
    begun, turn = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0, begun + turn - time.monotonic()))[0]:
        for sock in uploads:
            sock.sendall(body[turn * PIECE_BYTES : (turn + 1) * PIECE_BYTES])
        turn += 1
    print("turns", turn, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
