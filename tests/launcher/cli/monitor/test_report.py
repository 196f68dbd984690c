"""`xlpretrain report` of several runs, with --html and with --watch."""

import signal
import socket
import urllib.request
from pathlib import Path

import commands
import pytest
from click.testing import CliRunner, Result
from made_runs import make_rows, make_run
from matplotlib.figure import Figure
from typer.main import get_command

from launcher.cli import main


def report(*arguments: object) -> Result:
    return CliRunner().invoke(get_command(main.app), ["report", *map(str, arguments)])


def refused(*arguments: object) -> str:
    found = report(*arguments)
    assert found.exception is not None
    return str(found.exception)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "a", make_rows(20, evaluate_every=5, crash_at=7)),
        make_run(tmp_path / "b", make_rows(10, seed=1), {"optimizer": {"type": "adamw", "lr": 1e-3}}),
        make_run(tmp_path / "new", []),
    ]


def test_several_runs_are_compared_in_the_terminal(runs: list[Path]):
    found = report(*runs).output
    figures, _, configs = found.partition("differing key")
    (a,) = [line.split() for line in figures.splitlines() if line.startswith("a ")]
    assert a[:4] == ["a", "finished", "20/100,000", "327,680"]
    assert "not started" in figures
    (lr,) = [line.split() for line in configs.splitlines() if line.startswith("optimizer.lr")]
    assert lr == ["optimizer.lr", "0.0003", "0.001", "0.0003"]


def test_a_page_is_written_and_replaced(runs: list[Path], tmp_path: Path):
    file = tmp_path / "page.html"
    assert f"wrote {file}: 3 runs" in report(*runs, "--html", file).output
    assert "new</b> has no metrics yet" in file.read_text()
    assert f"wrote {file}: 1 run, " in report(runs[0], "--html", file).output
    file.write_text("mine")
    assert "--force" in refused(runs[0], "--html", file)
    assert file.read_text() == "mine"
    assert "wrote" in report(runs[0], "--html", file, "--force").output


def test_seeds_of_one_recipe_have_one_color_and_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    lr = {"optimizer": {"type": "adamw", "lr": 1e-3}}
    runs = [
        make_run(tmp_path / name, make_rows(20, seed=seed, evaluate_every=5), {"seed": seed, **config})
        for name, seed, config in (("a", 1, {}), ("high", 1, lr), ("b", 2, {}), ("c", 3, {}))
    ]
    report(*runs, "--plot", tmp_path / "plot.png")
    losses, *_, rates = drawn.pop().axes
    colors = [line.get_color() for line in losses.lines]
    assert colors[0] == colors[2] == colors[3] != colors[1]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["a and 2 more seeds", "high"]
    assert rates.get_xlabel() == "step" and losses.child_axes[0].get_xlabel() == "tokens trained on"


def test_runs_with_other_batches_are_plotted_over_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = make_rows(20, evaluate_every=5)
    double = [{**row, "tokens": 2 * row["tokens"]} for row in rows]
    paths = [make_run(tmp_path / "a", rows), make_run(tmp_path / "b", double, {"global_batch_size": 256})]
    report(*paths, "--plot", tmp_path / "plot.png")
    losses, *_, rates = drawn.pop().axes
    assert rates.get_xlabel() == "tokens trained on" and not losses.child_axes
    ends = [line.get_xdata()[-1] for line in losses.lines]
    assert ends == [rows[-1]["tokens"], 2 * rows[-1]["tokens"]]


def test_mistakes_are_named(runs: list[Path], tmp_path: Path):
    file = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    assert "not a run folder" in refused(runs[0], tmp_path / "empty", "--html", file)
    assert "not a run folder" in refused(runs[0], "/nowhere")
    assert "given twice" in refused(runs[0], runs[0])
    assert "choose one" in refused(runs[0], "--html", file, "--watch")
    assert "no run folder" in refused("data.valid=DIR")
    assert "--html FILE" in refused(runs[0], "--samples")
    assert "leave it out" in refused(*runs, "data.valid=DIR")
    assert not file.exists()


@pytest.mark.full
def test_the_served_page_ends_with_ctrl_c(runs: list[Path]):
    process = commands.start("report", *runs, "--watch", "--port", "0")
    url = commands.read_until(process, "serving").split()[1]
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert b"xlpretrain report" in answer.read()
    process.send_signal(signal.SIGINT)
    out, err = commands.finish(process, expect=0)
    assert (out, err) == ("", "")


@pytest.mark.full
def test_a_used_port_is_refused(runs: list[Path]):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        assert "is in use" in commands.refused("report", runs[0], "--watch", "--port", used.getsockname()[1])
