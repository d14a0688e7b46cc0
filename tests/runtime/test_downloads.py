"""Files over HTTP: whole and checked, or not there; resumed, once for several processes."""

import hashlib
import multiprocessing
import pathlib

import numpy as np
import pytest

from ktn_jax.runtime import caches, downloads

CONTENT = np.random.default_rng(0).bytes(3000)
START = hashlib.sha256(CONTENT).hexdigest()[:6]


@pytest.fixture
def server(file_server, monkeypatch):
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)
    file_server.files["/a/x.pkl"] = CONTENT
    return file_server


@pytest.fixture
def get(server, tmp_path):
    def get(url=None, start=START, name="x.pkl"):
        return downloads.fetch(url or f"{server.url}/a/x.pkl", tmp_path / "new" / name, start)

    return get


def _left(tmp_path):
    names = {path.name for path in (tmp_path / "new").iterdir()}
    return names - {"x.pkl.lock"}


def test_a_file_is_fetched_once(get, server, tmp_path):
    assert get().read_bytes() == CONTENT
    assert get().read_bytes() == CONTENT
    assert server.requests == [("/a/x.pkl", "")]
    assert _left(tmp_path) == {"x.pkl"}


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_connection_that_breaks_off_is_resumed(get, server, has_ranges):
    server.break_after, server.has_ranges = [1000, 500, 0], has_ranges
    assert get().read_bytes() == CONTENT
    asked = [asked for _, asked in server.requests]
    # Where the server starts again, so does the file.
    starts = ["", "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert asked == (starts if has_ranges else ["", "bytes=1000-", "bytes=500-", ""])


def test_a_later_call_resumes(get, server, tmp_path):
    server.break_after = [1000, *[0] * 20]
    with pytest.raises(downloads.DownloadError, match="1000 of 3000 bytes|broke off"):
        get()
    assert _left(tmp_path) == {"x.pkl.part"}  # nothing that could be taken for the file
    server.break_after = []
    server.requests.clear()
    assert get().read_bytes() == CONTENT
    assert server.requests == [("/a/x.pkl", "bytes=1000-")]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("begun", [CONTENT, b"?" * 500, b"?" * 3000, CONTENT + b"?"])
def test_what_was_begun_is_completed_or_replaced(get, server, tmp_path, begun, has_ranges):
    server.has_ranges = has_ranges
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "x.pkl.part").write_bytes(begun)
    assert get().read_bytes() == CONTENT


def test_another_file_is_refused(get, server, tmp_path):
    with pytest.raises(downloads.DownloadError, match="does not start abcdef") as caught:
        get(start="abcdef")
    assert str(tmp_path / "new" / "x.pkl") in str(caught.value)
    assert not _left(tmp_path)


def test_a_file_that_is_not_there_is_asked_for_once(get, server, tmp_path):
    with pytest.raises(downloads.DownloadError, match="404 Not Found.* put it at .*x.pkl"):
        get(f"{server.url}/none.pkl")
    server.status = 503  # may be over soon
    with pytest.raises(downloads.DownloadError, match="503"):
        get()
    assert len(server.requests) == 1 + downloads._ATTEMPTS
    assert _left(tmp_path) == {"x.pkl.part"} and not (tmp_path / "new/x.pkl.part").read_bytes()


def test_without_a_network_the_message_says_what_to_fetch(get, tmp_path):
    (tmp_path / "new").mkdir()
    # Port 1 refuses; the name does not exist.
    for url in ("http://127.0.0.1:1/x.pkl", "https://none.invalid/x.pkl"):
        with pytest.raises(downloads.DownloadError) as caught:
            get(url)
        for text in (url, "no connection", START, f"put it at {tmp_path / 'new' / 'x.pkl'}"):
            assert text in str(caught.value)
    (tmp_path / "new" / "x.pkl").write_bytes(b"by hand")
    assert get("https://none.invalid/x.pkl").read_bytes() == b"by hand"


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://127.0.0.1/x", "x.pkl", "https:///x"]
)
def test_only_encrypted_addresses_are_fetched(get, url, tmp_path):
    with pytest.raises(downloads.DownloadError, match="only https"):
        get(url)
    assert not (tmp_path / "new").exists()


def test_a_server_cannot_send_us_to_what_is_not_encrypted(get, server, monkeypatch):
    # Through the server as a proxy, so that the other address is reached.
    monkeypatch.setenv("http_proxy", server.url)
    server.redirect = "http://example.com/x.pkl"
    server.files["example.com/x.pkl"] = CONTENT

    def answer(handler, original=server.answer):
        server.redirect = server.redirect if "127.0.0.1" in handler.path else ""
        original(handler)

    server.answer = answer
    with pytest.raises(downloads.DownloadError, match=r"example.com/x.pkl: only https"):
        get()


def test_a_proxy_is_used(get, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.files["127.0.0.1:1/x.pkl"] = CONTENT
    assert get("http://127.0.0.1:1/x.pkl").read_bytes() == CONTENT
    assert server.requests == [("http://127.0.0.1:1/x.pkl", "")]


def _fetch(url, target):
    return downloads.fetch(url, target, START).read_bytes()


def test_several_processes_fetch_a_file_once(server, tmp_path):
    server.seconds_per_piece = 0.02  # a second for the file
    arguments = (f"{server.url}/a/x.pkl", tmp_path / "x.pkl")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_fetch, [arguments] * 3) == [CONTENT] * 3
    assert server.requests == [("/a/x.pkl", "")]


def test_a_process_that_hangs_does_not_hang_the_others(get, tmp_path, monkeypatch):
    import filelock

    monkeypatch.setattr(downloads, "_STALLED", 0.1)
    (tmp_path / "new").mkdir()
    with filelock.FileLock(tmp_path / "new" / "x.pkl.lock"):
        with pytest.raises(downloads.DownloadError, match="another process.* has brought nothing"):
            get()


def test_the_folder_of_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/x")
    for own, xdg, expected in (
        ("", "", "/home/x/.cache/ktn_jax/models"),
        ("", "/caches", "/caches/ktn_jax/models"),
        ("", "relative", "/home/x/.cache/ktn_jax/models"),
        ("/own", "/caches", "/own/models"),
        ("~/own", "", "/home/x/own/models"),
    ):
        monkeypatch.setenv("KTN_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert caches.folder("models") == pathlib.Path(expected)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KTN_CACHE", "own")
    assert caches.folder("models") == tmp_path / "own" / "models"
