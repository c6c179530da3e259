"""Tests of get_cub200_data.sh against a local server with a small archive of the true layout."""

import contextlib
import hashlib
import http.server
import io
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "get_cub200_data.sh"
BASH = shutil.which("bash")
# The tools of the script in addition to a downloader; a system without md5sum has md5.
BASIC_TOOLS = ["bash", "cat", "cut", "dirname", "gzip", "mkdir", "mv", "rm", "tar", "tr", "wc"]
SUM_TOOLS = ["md5sum", "md5"]
NEEDED = ["images.txt", "image_class_labels.txt", "bounding_boxes.txt"]

pytestmark = [
    pytest.mark.skipif(os.name == "nt" or BASH is None, reason="needs bash"),
    pytest.mark.skipif(
        not (shutil.which("curl") or shutil.which("wget")), reason="needs curl or wget"
    ),
]


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def make_archive(left_out=()):
    """Pack the layout of CUB_200_2011.tgz, without the members named in left_out."""
    # Noise does not compress, so the archive is long enough to break off in the middle.
    image = random.Random(0).getrandbits(8 * 60000).to_bytes(60000, "big")
    members = {
        "attributes.txt": b"1 has_bill_shape::curved\n",
        "CUB_200_2011/images.txt": b"1 001.Albatross/a.jpg\n",
        "CUB_200_2011/image_class_labels.txt": b"1 1\n",
        "CUB_200_2011/bounding_boxes.txt": b"1 60.0 27.0 325.0 304.0\n",
        "CUB_200_2011/images/001.Albatross/a.jpg": image,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            if not any(name.startswith(f"CUB_200_2011/{start}") for start in left_out):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


ARCHIVE = make_archive()
HALF = len(ARCHIVE) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends server.body as the settings of the server say, and notes each request."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        seen = {"range": asked, "sent": 0}
        server.requests.append(seen)
        if server.status != 200:
            self.answer(server.status, b"<html>an error page</html>")
            return
        start = 0
        if asked and server.ranges:
            start = int(re.match(r"bytes=(\d+)-$", asked).group(1))
            if start >= len(server.body):
                content_range = f"bytes */{len(server.body)}"
                self.answer(416, b"<html>no such range</html>", content_range)
                return
        rest = server.body[start:]
        content_range = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
        seen["sent"] = len(rest[: server.break_after])
        self.answer(
            206 if asked and server.ranges else 200,
            rest,
            content_range if asked and server.ranges else None,
            server.break_after,
        )

    def answer(self, status, body, content_range=None, break_after=None):
        """Send body, of which no more than break_after bytes arrive."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        # curl hangs up as soon as it sees that its range was ignored.
        with contextlib.suppress(OSError):
            self.wfile.write(body[:break_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server of ARCHIVE; a test changes its settings between two runs of the script."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.body = ARCHIVE
        httpd.status = 200
        httpd.ranges = True
        httpd.break_after = None
        httpd.requests = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}/CUB_200_2011.tgz?download=1"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def link_tools(folder, names):
    """Make folder a PATH with only these tools, as far as this machine has them."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


class Checkout:
    """A copy of the script in a folder of its own, and the way to run it."""

    def __init__(self, home, url, path):
        self.home = home
        home.mkdir()
        self.script = home / SCRIPT.name
        shutil.copy(SCRIPT, self.script)
        self.data = home / "data"
        self.folder = self.data / "CUB_200_2011"
        self.archive = self.data / "CUB_200_2011.tgz"
        self.part = self.data / "CUB_200_2011.tgz.part"
        self.env = {
            "PATH": str(path),
            "HOME": str(home),  # keeps out the curl and wget settings of the user
            "LC_ALL": "C",
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
            "CUB200_URL": url,
            "CUB200_MD5": md5(ARCHIVE),
        }

    def run(self, *args, script=None, cwd=None):
        return subprocess.run(
            [BASH, str(script or self.script), *args],
            cwd=cwd or self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_LIMIT,
        )

    def put_part(self, content):
        self.data.mkdir(exist_ok=True)
        self.part.write_bytes(content)

    def contents(self):
        return sorted(entry.name for entry in self.data.iterdir())

    def assert_complete(self, result):
        assert result.returncode == 0, result.stderr
        assert self.contents() == ["CUB_200_2011", "CUB_200_2011.tgz"]
        for name in NEEDED:
            assert (self.folder / name).stat().st_size > 0
        assert (self.folder / "images/001.Albatross/a.jpg").stat().st_size == 60000


def error_of(result):
    """The one line of error of a run that failed."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if "get_cub200_data.sh: " in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("get_cub200_data.sh: error: ")
    assert "error" not in result.stdout
    return lines[0]


@pytest.fixture(params=["curl", "wget"])
def checkout(request, tmp_path, server):
    """A checkout whose PATH holds only one of the two downloaders."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    tools = link_tools(tmp_path / "tools", [*BASIC_TOOLS, *SUM_TOOLS, request.param])
    return Checkout(tmp_path / "checkout", server.url, tools)


@pytest.fixture
def any_checkout(tmp_path, server):
    """A checkout with the PATH of the tests, for what does not depend on the downloader."""
    return Checkout(tmp_path / "checkout", server.url, os.environ["PATH"])


def test_fresh_download(checkout, server):
    result = checkout.run()
    checkout.assert_complete(result)
    assert checkout.archive.read_bytes() == ARCHIVE
    assert server.requests == [{"range": None, "sent": len(ARCHIVE)}]
    assert "CC BY 4.0" in result.stdout


def test_broken_download_is_resumed(checkout, server):
    server.break_after = HALF
    first = checkout.run()
    error = error_of(first)
    assert server.url in error and "run again" in error
    assert checkout.contents() == ["CUB_200_2011.tgz.part"]
    assert checkout.part.read_bytes() == ARCHIVE[:HALF]

    server.break_after = None
    server.requests.clear()
    checkout.assert_complete(checkout.run())
    assert server.requests == [{"range": f"bytes={HALF}-", "sent": len(ARCHIVE) - HALF}]


def test_server_that_ignores_ranges(checkout, server):
    checkout.put_part(ARCHIVE[:HALF])
    server.ranges = False
    checkout.assert_complete(checkout.run())
    assert server.requests[0]["range"] == f"bytes={HALF}-"


def test_complete_part_needs_no_network(checkout, server):
    checkout.put_part(ARCHIVE)
    checkout.assert_complete(checkout.run())
    assert server.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("excess", [b"", b"more"])
def test_full_part_of_wrong_content_is_fetched_from_scratch(checkout, server, ranges, excess):
    checkout.put_part(ARCHIVE[:-1] + b"?" + excess)
    server.ranges = ranges
    result = checkout.run()
    if not ranges and result.returncode != 0:
        # wget drops an answer that is shorter than the part; the checksum then shows it.
        assert "run again" in error_of(result)
        result = checkout.run()
    checkout.assert_complete(result)


def test_corrupted_download(checkout, server):
    server.body = ARCHIVE[:HALF] + b"corrupted" + ARCHIVE[HALF + 9 :]
    error = error_of(checkout.run())
    for part in (str(checkout.part), md5(server.body), md5(ARCHIVE), "run again"):
        assert part in error
    assert checkout.contents() == []

    server.body = ARCHIVE
    server.requests.clear()
    checkout.assert_complete(checkout.run())
    assert server.requests == [{"range": None, "sent": len(ARCHIVE)}]


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("kept", [b"", ARCHIVE[:HALF]], ids=["nothing", "half"])
def test_http_error(checkout, server, status, kept):
    if kept:
        checkout.put_part(kept)
    server.status = status
    error = error_of(checkout.run())
    assert server.url in error and "CUB200_URL" in error
    # Another run would not help here, so the line must not promise that.
    assert "refused" in error and "run again" not in error
    assert checkout.contents() == (["CUB_200_2011.tgz.part"] if kept else [])
    if kept:
        assert checkout.part.read_bytes() == kept


def test_empty_answer(checkout, server):
    server.body = b""
    error = error_of(checkout.run())
    assert server.url in error
    assert checkout.contents() == []


def test_server_that_is_away(checkout, server):
    server.shutdown()
    server.server_close()
    error = error_of(checkout.run())
    assert server.url in error and "CUB200_URL" in error
    assert checkout.contents() == []


def test_neither_curl_nor_wget(tmp_path, server):
    tools = link_tools(tmp_path / "tools", [*BASIC_TOOLS, *SUM_TOOLS])
    checkout = Checkout(tmp_path / "checkout", server.url, tools)
    error = error_of(checkout.run())
    assert "curl" in error and "wget" in error and "install" in error


def test_md5_of_macos(tmp_path, server):
    md5sum = shutil.which("md5sum")
    if md5sum is None:
        pytest.skip("needs md5sum to stand in for md5")
    tools = link_tools(tmp_path / "tools", [*BASIC_TOOLS, "curl", "wget"])
    stand_in = tools / "md5"
    stand_in.write_text(f'#!{BASH}\n[ "$*" = -q ] || exit 1\n"{md5sum}" | cut -c 1-32\n')
    stand_in.chmod(0o755)
    checkout = Checkout(tmp_path / "checkout", server.url, tools)
    checkout.assert_complete(checkout.run())


def test_no_tool_for_the_sum(tmp_path, server):
    tools = link_tools(tmp_path / "tools", [*BASIC_TOOLS, "curl", "wget"])
    checkout = Checkout(tmp_path / "checkout", server.url, tools)
    assert "md5sum" in error_of(checkout.run())
    assert server.requests == []


def test_sum_in_capitals(any_checkout):
    any_checkout.env["CUB200_MD5"] = md5(ARCHIVE).upper()
    any_checkout.assert_complete(any_checkout.run())


def test_archive_in_place_is_not_downloaded(any_checkout, server):
    any_checkout.data.mkdir()
    any_checkout.archive.write_bytes(ARCHIVE)
    any_checkout.assert_complete(any_checkout.run())
    assert server.requests == []


def test_wrong_archive_in_place_is_kept(any_checkout, server):
    any_checkout.data.mkdir()
    any_checkout.archive.write_bytes(b"put here by hand")
    error = error_of(any_checkout.run())
    for part in (str(any_checkout.archive), md5(b"put here by hand"), md5(ARCHIVE)):
        assert part in error
    assert any_checkout.contents() == ["CUB_200_2011.tgz"]
    assert server.requests == []


def test_default_sum_is_the_one_of_the_real_archive(any_checkout):
    del any_checkout.env["CUB200_MD5"]
    assert "97eceeb196236b17998738112f37df78" in error_of(any_checkout.run())
    assert any_checkout.contents() == []


def test_rerun_does_nothing(any_checkout, server):
    any_checkout.run()
    server.requests.clear()
    before = any_checkout.folder.stat()
    result = any_checkout.run()
    any_checkout.assert_complete(result)
    assert server.requests == []
    assert any_checkout.folder.stat() == before
    assert len(result.stdout.splitlines()) == 1 and "Nothing to do" in result.stdout

    any_checkout.archive.unlink()
    assert any_checkout.run().returncode == 0
    assert server.requests == []


@pytest.mark.parametrize("name", [*NEEDED, "images"])
def test_incomplete_folder_is_neither_used_nor_removed(any_checkout, server, name):
    any_checkout.run()
    server.requests.clear()
    target = any_checkout.folder / name
    target.rename(any_checkout.home / name)
    error = error_of(any_checkout.run())
    assert str(any_checkout.folder) in error and name in error
    assert any_checkout.folder.is_dir()
    assert server.requests == []


@pytest.mark.parametrize("name", [*NEEDED, "images"])
def test_archive_without_a_needed_member(any_checkout, server, name):
    server.body = make_archive(left_out=[name])
    any_checkout.env["CUB200_MD5"] = md5(server.body)
    assert f"CUB_200_2011/{name}" in error_of(any_checkout.run()).replace("images/", "images")
    assert any_checkout.contents() == ["CUB_200_2011.tgz"]


def test_truncated_archive_is_not_unpacked(any_checkout, server):
    server.body = ARCHIVE[:HALF]
    any_checkout.env["CUB200_MD5"] = md5(server.body)
    assert str(any_checkout.archive) in error_of(any_checkout.run())
    assert any_checkout.contents() == ["CUB_200_2011.tgz"]


def test_kill_while_unpacking(any_checkout, tmp_path, server):
    """A tar that unpacks and then hangs gives a sure moment for the kill."""
    hanging = tmp_path / "hanging"
    hanging.mkdir()
    marker = tmp_path / "unpacked"
    tar = hanging / "tar"
    tar.write_text(f'#!{BASH}\n"{shutil.which("tar")}" "$@"\n: >"{marker}"\nexec sleep 1000000\n')
    tar.chmod(0o755)
    env = dict(any_checkout.env, PATH=f"{hanging}{os.pathsep}{any_checkout.env['PATH']}")
    process = subprocess.Popen(
        [BASH, str(any_checkout.script)],
        cwd=any_checkout.home,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + HANG_LIMIT
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert marker.exists()
    assert not any_checkout.folder.exists()
    leftovers = [name for name in any_checkout.contents() if name != "CUB_200_2011.tgz"]
    assert leftovers, "the kill came too late to test anything"

    server.requests.clear()
    any_checkout.assert_complete(any_checkout.run())
    assert server.requests == []


def test_other_working_directory(any_checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    any_checkout.assert_complete(any_checkout.run(cwd=elsewhere))
    assert list(elsewhere.iterdir()) == []


def test_relative_name_with_cdpath(any_checkout, tmp_path):
    decoy = tmp_path / "decoy"
    (decoy / any_checkout.home.name).mkdir(parents=True)
    any_checkout.env["CDPATH"] = str(decoy)
    script = Path(any_checkout.home.name) / any_checkout.script.name
    any_checkout.assert_complete(any_checkout.run(script=script, cwd=tmp_path))


@pytest.mark.parametrize("name", ["two  words", "it's $HOME", "host:folder", "back\\slash"])
def test_unusual_folder_name(tmp_path, server, name):
    checkout = Checkout(tmp_path / name, server.url, os.environ["PATH"])
    checkout.assert_complete(checkout.run(cwd=tmp_path))


def test_script_is_executable():
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(any_checkout, server, option):
    result = any_checkout.run(option)
    assert result.returncode == 0 and result.stderr == ""
    assert "CUB200_URL" in result.stdout and "CUB200_MD5" in result.stdout
    assert not any_checkout.data.exists()


def test_unknown_argument(any_checkout, server):
    result = any_checkout.run("--fast")
    assert "--fast" in error_of(result)
    assert "Usage:" in result.stderr
    assert not any_checkout.data.exists()
