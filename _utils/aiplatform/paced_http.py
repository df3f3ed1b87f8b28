"""HTTP replies whose every part has an end: a socket's own time-out begins anew with each byte that trickles in."""

from __future__ import annotations

import http.client
import io
import time
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Adapter(HTTPAdapter):
    """For a session without proxies: the read time-out of a request bounds status line and headers together."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools, with connections whose replies are paced."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


def piece(reply: requests.Response, most: int, seconds: float) -> bytes:
    """Return what comes next of a reply's body through ``Adapter``: some bytes, at most ``most``; none at its end.

    reply
        Of a request with ``stream=True``.
    seconds
        How long they may take.

    Raises urllib3's errors: ``ReadTimeoutError``, ``ProtocolError`` where the connection broke, ...
    """
    raw: Any = reply.raw
    raw._fp.allow(seconds)
    return cast("bytes", raw.read1(most, decode_content=True))


class _Socket(io.RawIOBase):
    """What a socket gives, until a moment."""

    def __init__(self, sock: Any, file: io.RawIOBase) -> None:
        self._sock, self._file = sock, file
        self.ends = time.monotonic() + sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._paced = _Socket(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._paced)

    def allow(self, seconds: float) -> None:
        """Let what comes next take so long."""
        self._paced.ends = time.monotonic() + seconds


class _Connection(HTTPConnection):
    response_class = _Reply


class _TlsConnection(HTTPSConnection):
    response_class = _Reply


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection
