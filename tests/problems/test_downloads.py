"""Downloads of data files from a server on this computer: only the table of addresses is another than in use."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from file_server import Server, half, left_in, refusal, serving, whole

from latephase.problems import data
from latephase.problems.data import DATA_SETS, DataError, DataFile, Download

TABLE = b"1 2 3 4 5 6 7 8 9\n" * 5000
"""The content of a table of 5,000 rows, 90,000 bytes."""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("LATEPHASE_DATA", raising=False)
    monkeypatch.setenv("LATEPHASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def offer(monkeypatch, cache) -> Callable[..., None]:
    """Let the table "energy" have 5,000 rows, and be had from these addresses."""

    def set_addresses(*urls: str, content: bytes = TABLE) -> None:
        source = Download(urls, f"sha256:{hashlib.sha256(TABLE).hexdigest()}", len(TABLE))
        file = DataFile("uci/energy/data.txt", len(content), source, rows=5000)
        monkeypatch.setitem(DATA_SETS, "uci_energy", replace(DATA_SETS["uci_energy"], files=(file,)))

    return set_addresses


def test_a_file_is_downloaded_once(offer, server, cache):
    offer(server.address("data.txt", whole(TABLE)))
    assert [str(file.places[0]) for file in data.missing("uci_energy")] == [str(cache / "uci/energy/data.txt")]
    assert server.requests == []  # listing downloads nothing
    assert data.uci("energy").shape == (5000, 9)
    assert data.uci("energy").shape == (5000, 9)
    assert server.requests == ["/data.txt"]
    assert left_in(cache) == ["uci/energy/data.txt"]
    assert (cache / "uci/energy/data.txt").stat().st_mode & 0o777 == 0o644
    assert data.missing("uci_energy") == []


def test_a_broken_connection_is_tried_again(offer, server, cache):
    offer(server.address("data.txt", half(TABLE), refusal(503), whole(TABLE)))
    assert data.uci("energy").shape == (5000, 9)
    assert len(server.requests) == 3
    assert left_in(cache) == ["uci/energy/data.txt"]


def test_no_half_file_is_left_and_the_next_attempt_succeeds(offer, server, cache):
    offer(server.address("data.txt", half(TABLE)))
    with pytest.raises(DataError) as caught:
        data.uci("energy")
    assert left_in(cache) == []
    message = str(caught.value)
    path, address = str(cache / "uci/energy/data.txt"), f"http://127.0.0.1:{server.server_port}/data.txt"
    for part in (
        f"{cache} lacks uci/energy/data.txt (90,000 bytes)",
        "LATEPHASE_DATA is not set",
        f"{address}: ",
        "45000 bytes read",  # why it failed
        f"Download {address} by hand to {path}, or set LATEPHASE_DATA",
    ):
        assert part in message
    server.address("data.txt", whole(TABLE))
    assert data.uci("energy").shape == (5000, 9)


@pytest.mark.parametrize("answer", [refusal(404), whole(b"<html>moved</html>"), whole(TABLE + b" ")])
def test_the_next_address_is_asked_where_one_has_something_else(offer, server, cache, answer):
    offer(server.address("moved", answer), server.address("mirror", whole(TABLE)))
    assert data.uci("energy").shape == (5000, 9)
    assert server.requests == ["/moved", "/mirror"]


def test_what_has_another_checksum_is_refused_and_not_asked_for_again(offer, server, cache):
    offer(server.address("data.txt", whole(TABLE[::-1])), server.address("mirror", refusal(404)))
    with pytest.raises(DataError, match=r"data.txt: .*hash.*does not match.*/mirror: 404 .*Not Found"):
        data.uci("energy")
    assert server.requests == ["/data.txt", "/mirror"]
    assert left_in(cache) == []


def test_an_endless_answer_is_cut_off(offer, server, cache):
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(2048):  # 128 MiB, unless the other end hangs up
            sent.append(handler.wfile.write(bytes(1 << 16)))

    offer(server.address("data.txt", endless))
    with pytest.raises(DataError, match=r"more than the published 90,000 bytes were sent"):
        data.uci("energy")
    assert sum(sent) < 64 << 20  # what buffers of the system hold
    assert left_in(cache) == []


def test_an_address_where_nobody_answers(offer, cache):
    offer("http://127.0.0.1:9/data.txt")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/data\.txt: .*Connection refused"):
        data.uci("energy")


def test_a_cache_that_cannot_be_written(offer, server, cache):
    offer(server.address("data.txt", whole(TABLE)))
    cache.write_bytes(b"a file")
    with pytest.raises(DataError, match=r"A download failed: .*(File exists|Not a directory).*by hand"):
        data.uci("energy")


def test_the_users_folder_comes_first_and_is_not_mixed_with_the_cache(monkeypatch, server, cache, tmp_path):
    files = []
    for name, rows in (("cifar-100-binary/train.bin", 3), ("cifar-100-binary/test.bin", 2)):
        source = Download((server.address("both", refusal(404)),), "md5:0", 1, archive=True)
        files.append(DataFile(name, rows * 3074, source, rows))
    monkeypatch.setitem(DATA_SETS, "cifar100", replace(DATA_SETS["cifar100"], files=tuple(files)))
    own = tmp_path / "own"
    for folder, label in ((own, 1), (cache, 2)):
        (folder / "cifar-100-binary").mkdir(parents=True)
        for file in files:
            (folder / file.path).write_bytes(bytes([0, label, *bytes(3072)]) * file.rows)
    monkeypatch.setenv("LATEPHASE_DATA", str(own))
    assert data.cifar100().test_labels.tolist() == [1, 1]
    (own / files[0].path).unlink()
    assert data.cifar100().test_labels.tolist() == [2, 2]
    (cache / files[1].path).unlink()
    assert [file.path for file in data.missing("cifar100")] == [files[0].path]
    with pytest.raises(
        DataError, match=rf"{own} lacks {files[0].path} .*; {cache} lacks {files[1].path} .*unpack it in"
    ):
        data.cifar100()
    monkeypatch.setenv("LATEPHASE_DATA", str(tmp_path / "typing error"))
    with pytest.raises(DataError, match=r"LATEPHASE_DATA is .*typing error, which is not a folder"):
        data.cifar100()


PROCESS = """
import sys
from dataclasses import replace
from latephase.problems import data
from latephase.problems.data import DATA_SETS, DataFile, Download
source = Download((sys.argv[1],), sys.argv[2], int(sys.argv[3]))
file = DataFile("uci/energy/data.txt", int(sys.argv[3]), source, rows=5000)
DATA_SETS["uci_energy"] = replace(DATA_SETS["uci_energy"], files=(file,))
data.uci("energy")
"""


@pytest.mark.slow
def test_one_downloads_at_a_time_and_a_killed_process_leaves_nothing(offer, server, cache):
    halfway, killed = threading.Event(), threading.Event()

    def until_killed(handler: BaseHTTPRequestHandler) -> None:
        half(TABLE)(handler)
        halfway.set()
        killed.wait(60)

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        half(TABLE)(handler)
        time.sleep(0.5)  # the other thread asks meanwhile, if it does not wait for the lock
        handler.wfile.write(TABLE[len(TABLE) // 2 :])

    address = server.address("data.txt", until_killed, slowly)
    offer(address)
    checksum = DATA_SETS["uci_energy"].files[0].download.checksum
    process = subprocess.Popen([sys.executable, "-c", PROCESS, address, checksum, str(len(TABLE))])
    try:
        assert halfway.wait(60)
        with ThreadPoolExecutor(2) as pool:
            tables = [pool.submit(data.uci, "energy") for _ in range(2)]
            time.sleep(0.3)
            assert server.requests == ["/data.txt"]  # both wait for the process
            assert len(list(cache.rglob("tmp*"))) == 1
            process.kill()
            killed.set()
            assert [table.result(60).shape for table in tables] == [(5000, 9)] * 2
    finally:
        killed.set()
        process.kill()
        process.wait()
    assert server.requests == ["/data.txt"] * 2
    assert left_in(cache) == ["uci/energy/data.txt"]
