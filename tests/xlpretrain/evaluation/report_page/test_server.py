"""The page while it is served."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import append_rows, make_rows, make_run

from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.report_page.page import PageOptions
from xlpretrain.evaluation.report_page.run_data import open_runs
from xlpretrain.evaluation.report_page.server import LivePage, PageServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    page = LivePage(open_runs([make_run(tmp_path / "a", make_rows(5))]), PageOptions(refresh_s=5))
    with PageServer(page, 0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, tag and content."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers["ETag"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["ETag"], error.read().decode()


def test_the_page_grows_with_its_run(server: PageServer, tmp_path: Path):
    status, tag, content = get(server.url)
    assert status == 200
    assert '"refresh_s": 5' in content
    assert get(server.url, **{"If-None-Match": tag}) == (304, tag, "")
    append_rows(tmp_path / "a", make_rows(9)[5:])
    status, newer, grown = get(server.url, **{"If-None-Match": tag})
    assert (status, newer != tag) == (200, True)
    assert len(grown) > len(content)


def test_only_the_page_is_served_and_only_to_this_machine(server: PageServer):
    assert server.server_address[0] == "127.0.0.1"
    assert get(f"{server.url}a/config.yaml")[0] == 404
    assert get(server.url, Host="attacker.example")[0] == 403
    assert get(server.url, Host="localhost:8642")[0] == 200


def test_a_used_port_is_named(server: PageServer):
    with pytest.raises(LaunchError, match=rf"port {server.server_address[1]} is in use; choose another with --port"):
        PageServer(server.page, int(server.server_address[1]))
