"""`rtseg.source.stream` over HTTP: recordings with and without a duration, live streams, names."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_stream import write_video

from rtseg.errors import SourceError, StreamLostError
from rtseg.source import open_source


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a directory; `half/NAME` breaks off in the middle."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        if kind != "half":
            super().do_GET()
            return
        data = (Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("http")
    options = {"g": "10", "bf": "2", "crf": "18"}
    muxer = {"movflags": "faststart"}
    write_video(directory / "plain.mp4", frames=100, options=options, muxer=muxer)
    write_video(directory / "long.ts", frames=60)
    write_video(directory / "pictures.mjpeg", frames=12, codec="mjpeg", pix_fmt="yuvj420p")
    handler = functools.partial(Handler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_http_file(served: str) -> None:
    source = open_source(f"{served}/plain.mp4?token=secret")
    assert source.info.frame_count == 100
    assert not source.info.live
    assert "secret" not in source.info.name
    assert [f.pts_seconds for f in source] == [i / 25 for i in range(100)]
    assert source.warnings == []


@pytest.mark.parametrize(("name", "count"), [("long.ts", 60), ("pictures.mjpeg", 12)])
def test_a_recording_without_a_duration(served: str, name: str, count: int) -> None:
    """Its length in bytes says that it is one: every frame counts, however fast they come."""
    source = open_source(f"{served}/{name}")
    assert not source.info.live
    assert [f.index for f in source] == list(range(count))


def test_a_recording_that_ends_too_early_is_not_begun_again(served: str) -> None:
    source = open_source(f"{served}/half/long.ts")
    indices: list[int] = []
    with contextlib.suppress(StreamLostError):
        for frame in source:
            indices.append(frame.index)  # noqa: PERF401  (keeps those before the error)
    assert 0 < len(indices) < 60
    assert indices == sorted(set(indices))


def test_an_image_behind_http_is_no_file(served: str) -> None:
    with pytest.raises(SourceError, match=r"snap.jpg: cannot be opened .*404"):
        open_source(f"{served}/snap.jpg")


def test_http_not_found(served: str) -> None:
    with pytest.raises(SourceError, match=r"gone.mp4: cannot be opened .*404"):
        open_source(f"{served}/gone.mp4")


def test_password_is_not_shown() -> None:
    with pytest.raises(SourceError, match="cannot be opened") as caught:
        open_source("rtsp://user:secret@127.0.0.1:9/video")
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, StreamLostError)


@pytest.mark.parametrize("url", ["ftp://host/y.mp4", "rtps://camera/stream", "foo://bar/x.png"])
def test_unknown_schemes(url: str) -> None:
    with pytest.raises(SourceError, match=r"unknown scheme \w+://: expected one of http://"):
        open_source(url)


@pytest.mark.parametrize("url", ["rtsp://[::1/x", "rtsp://user:p[w@host/x"])
def test_malformed_urls(url: str) -> None:
    with pytest.raises(SourceError, match=r"malformed URL .*%5B") as caught:
        open_source(url)
    assert "p[w" not in str(caught.value)
