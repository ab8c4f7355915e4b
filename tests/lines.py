"""A TCP line to a server on this machine that can be cut, hung, slowed down, or laid to another server.

Whoever connects to `port` speaks to the server, byte for byte; it knows no protocol.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 1 << 16


class Line:
    """A line that is up when made. Each fault lasts until `mend`."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._target = server_port
        self._delay_s = 0.0
        self._flows = threading.Event()
        self._lock = threading.Lock()  # guards the two below
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Lead to the server again, at full speed; what was held back by `hang` arrives now."""
        if self._target != self._server_port:
            self.divert(self._server_port)
        self._delay_s = 0.0
        self._flows.set()
        if self._listener is None:
            self._listen()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            listener.close()
        self._hang_up()

    def hang(self) -> None:
        """Let nothing through any more, and keep connections open: how a network that loses everything looks."""
        self._flows.clear()

    def slow(self, delay_s: float) -> None:
        """Hold every piece of data back for so long."""
        self._delay_s = delay_s

    def divert(self, port: int) -> None:
        """Lead to another server, which listens on `port`."""
        with self._lock:
            self._target = port
        self._hang_up()

    def close(self) -> None:
        """End it for good."""
        self.cut()
        self._flows.set()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))  # the same port again after a cut
        self.port = listener.getsockname()[1]
        with self._lock:
            self._listener = listener
        threading.Thread(target=self._accept, args=[listener], name="line", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                near, _ = listener.accept()
                target = self._target
                try:
                    far = socket.create_connection(("127.0.0.1", target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    is_up = self._listener is listener and self._target == target
                    if is_up:
                        self._connections |= {near, far}
                if not is_up:  # cut, or laid elsewhere, while this one was made
                    near.close()
                    far.close()
                    continue
                ends = _Ends(near, far, self._forget)
                for source, sink in ((near, far), (far, near)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pump, args=[source, sink, ends], name="line", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, ends: _Ends) -> None:
        with suppress(OSError):  # one of the two has ended
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                if self._delay_s:
                    time.sleep(self._delay_s)
                sink.sendall(data)
        ends.one_is_done()

    def _hang_up(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
            connection.close()


class _Ends:
    """The two sockets of a connection, closed when both directions are done with them."""

    def __init__(self, near: socket.socket, far: socket.socket, forget) -> None:
        self._sockets = (near, far)
        self._forget = forget
        self._lock = threading.Lock()
        self._num_done = 0

    def one_is_done(self) -> None:
        """End both sides with the first direction that ends, and close them with the second."""
        with self._lock:
            self._num_done += 1
            is_last = self._num_done == len(self._sockets)
        for each in self._sockets:
            if is_last:
                self._forget(each)
            else:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(server_port: int):
    """Lay a line to a server for the length of a `with` block."""
    line = Line(server_port)
    try:
        yield line
    finally:
        line.close()
