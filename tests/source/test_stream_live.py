"""`rtseg.source.stream` on live streams: a small RTSP server in a thread, lost and regained."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from rtseg.errors import SourceError, StreamLostError
from rtseg.source import Source, _demux, stream

SIZE_HW = (64, 96)
FPS = 50
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
    f"a=framerate:{FPS}\r\na=control:track0\r\n"
)


class Packets:
    """Collects what FFmpeg's RTP muxer writes: one packet per call."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.packets.append(bytes(data))
        return len(data)


def rtp_pictures(count: int) -> Iterator[list[bytes]]:
    """RTP packets of each of `count` grey pictures, brightness = 2 * number."""
    out = Packets()
    with av.open(out, "w", format="rtp", options={"packetsize": "1400"}) as container:
        video = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
        )
        video.height, video.width = SIZE_HW
        video.pix_fmt = "yuv420p"
        for number in range(count):
            grey = np.full((*SIZE_HW, 3), 2 * number % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
            # Without RTCP sender reports (packet types 200 and above).
            yield [p for p in out.packets if not 200 <= p[1] <= 207]
            out.packets.clear()


class RtspServer:
    """Serves every connection `pictures[i]` pictures in real time, the last entry for the rest.

    After them it closes the connection, or falls silent if `silent`.
    """

    def __init__(self, pictures: list[int], *, silent: bool = False) -> None:
        self._pictures, self._silent = pictures, silent
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.url = f"rtsp://user:secret@127.0.0.1:{self._listener.getsockname()[1]}/cam"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._listener.close()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            count = self._pictures[min(self.connections, len(self._pictures) - 1)]
            self.connections += 1
            with connection:
                try:
                    self._serve(connection, count)
                except OSError:
                    continue  # the client left

    def _serve(self, connection: socket.socket, count: int) -> None:
        connection.settimeout(5)
        reader = connection.makefile("rb")
        while True:
            method, _, headers = reader.readline().decode().partition(" ")
            if not method:
                return
            fields = {}
            while line := reader.readline().decode().strip():
                key, _, value = line.partition(": ")
                fields[key.lower()] = value
            del headers
            body, extra = "", ""
            if method == "DESCRIBE":
                body, extra = SDP, "Content-Type: application/sdp\r\n"
            elif method == "SETUP":
                extra = f"Transport: {fields['transport']}\r\n"
            elif method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\nSession: 1\r\n{extra}"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            if method == "PLAY":
                self._play(connection, count)
                return

    def _play(self, connection: socket.socket, count: int) -> None:
        start = time.monotonic()
        for number, packets in enumerate(rtp_pictures(count)):
            for packet in packets:
                connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
            if self._stop.wait(max(0.0, start + number / FPS - time.monotonic())):
                return
        if self._silent:
            self._stop.wait(30)


@pytest.fixture
def serve() -> Iterator[Callable[..., RtspServer]]:
    servers: list[RtspServer] = []

    def start(pictures: list[int], *, silent: bool = False) -> RtspServer:
        servers.append(RtspServer(pictures, silent=silent))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def take_all(source: Source) -> None:
    for _ in source:
        pass


def test_rtsp(serve: Callable[..., RtspServer]) -> None:
    server = serve([500])
    source = stream.open(server.url)
    assert source.info.live
    assert source.info.size_hw == SIZE_HW
    assert source.info.frame_count is None
    assert "secret" not in source.info.name
    frames = list(itertools.islice(source, 25))
    source.close()
    # After the first, those are left out that FFmpeg had read to find out what the stream is.
    pts = np.array([f.pts_seconds for f in frames[1:]])
    assert np.diff(pts) == pytest.approx(1 / FPS, abs=1e-4)
    arrived = np.array([f.captured_at for f in frames[1:]])
    lag = (arrived - pts) - (arrived - pts).min()
    assert lag.max() < 0.3
    assert server.connections == 1


def test_pictures_that_waited_while_nobody_read_are_left_out(
    serve: Callable[..., RtspServer],
) -> None:
    source = stream.open(serve([500]).url)
    time.sleep(1.0)
    opened_at = time.monotonic()
    frames = list(itertools.islice(source, 10))
    source.close()
    assert frames[0].pts_seconds > 0.5, "a picture of one second ago is not live"
    assert frames[0].captured_at >= opened_at
    assert frames[0].index > 10


def test_lost_stream_comes_back(serve: Callable[..., RtspServer]) -> None:
    server = serve([40, 500])
    source = stream.open(server.url)
    frames = list(itertools.islice(source, 80))
    source.close()
    assert server.connections == 2
    pts = np.array([f.pts_seconds for f in frames])
    assert all(np.diff(pts) > 0)
    assert all(np.diff([f.index for f in frames]) >= 1)
    assert np.diff(pts).max() > 0.2, "the time without pictures must show in the timestamps"
    (warning,) = source.warnings
    assert "came back after" in warning
    assert "secret" not in warning


def test_lost_stream_that_stays_away(serve: Callable[..., RtspServer]) -> None:
    server = serve([40, 0])
    source = stream.open(server.url, reconnect_s=0.5)
    with pytest.raises(StreamLostError, match=r"did not come back within 0.5 s") as caught:
        take_all(source)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_silent_camera_is_noticed(
    serve: Callable[..., RtspServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_demux, "READ_TIMEOUT_S", 0.5)
    source = stream.open(serve([40, 0], silent=True).url, reconnect_s=0.1)
    monkeypatch.setattr(_demux, "OPEN_TIMEOUT_S", 0.5)
    start = time.monotonic()
    with pytest.raises(StreamLostError, match="no answer in time"):
        take_all(source)
    assert time.monotonic() - start < 5


def test_close_while_waiting_for_the_stream(serve: Callable[..., RtspServer]) -> None:
    source = stream.open(serve([40, 0]).url, reconnect_s=60)
    timer = threading.Timer(1.5, source.close)
    timer.start()
    start = time.monotonic()
    take_all(source)
    assert time.monotonic() - start < 5
    timer.join()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceError, match="Connection refused"):
        stream.open(f"rtsp://127.0.0.1:{port}/cam")


def test_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demux, "OPEN_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for scheme in ("rtsp", "http"):
            with pytest.raises(SourceError, match="no answer in time"):
                stream.open(f"{scheme}://127.0.0.1:{port}/cam")
