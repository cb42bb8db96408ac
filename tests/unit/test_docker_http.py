"""How answers of a Docker API are read, where a whole engine would be too much."""

import io
import socket

import pytest

from immich_vitals.sources.http_within import PatientReader


def test_a_stream_goes_on_after_silence() -> None:
    """Silence is no end: what comes after it is read over the same connection, also when http.client has closed it."""
    ours, engines = socket.socketpair()
    with engines:
        reader = PatientReader(ours)
        stream = io.BufferedReader(reader)
        ours.close()
        for word in (b"one", b"two"):
            reader.allow(0.01)
            with pytest.raises(TimeoutError):
                stream.read1()
            engines.sendall(word)
            reader.allow(10)
            assert stream.read1() == word
        stream.close()
        assert engines.recv(1) == b""
