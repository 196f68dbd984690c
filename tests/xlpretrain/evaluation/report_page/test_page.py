"""The page as a file: what it contains, escapes and refuses. Modules: charts.py, curves.py."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import make_rows, make_run
from small_disk import mount_small_disk

from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.report_page import page as report_page
from xlpretrain.evaluation.report_page.charts import charts_of
from xlpretrain.evaluation.report_page.page import PageOptions, TextSample, render
from xlpretrain.evaluation.report_page.run_data import RunData, open_runs

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
ASSETS = Path(report_page.__file__).parent / "assets"


def read(*folders: Path) -> list[RunData]:
    readers = open_runs(folders)
    for reader in readers:
        reader.refresh()
    return [reader.read() for reader in readers]


class Parsed(HTMLParser):
    """Tags with attributes, the text of scripts, and all other text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def floats(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_has_curves_tables_and_provenance(tmp_path: Path):
    rows = make_rows(50, evaluate_every=10, crash_at=20)
    (run,) = read(make_run(tmp_path / "mine", rows))
    found = Parsed(render([run]))
    (encoded,) = found.data["runs"]
    loss = encoded["curves"]["train/loss"]
    np.testing.assert_equal(floats(loss["x"], "<u4"), [row["step"] for row in rows])
    np.testing.assert_allclose(floats(loss["y"]), [row["train/loss"] for row in rows], rtol=1e-6)
    np.testing.assert_equal(floats(encoded["axes"]["tokens"], "<f8"), [row["tokens"] for row in rows])
    assert encoded["marks"] == [[21, "restart"]]
    for text in ("mine", "Training loss", "Held-out perplexity", "optimizer.lr", "node1", "starting again"):
        assert text in found.text


def test_a_page_needs_no_network_and_allows_no_other_script(tmp_path: Path):
    content = render(read(make_run(tmp_path / "a", make_rows(5))))
    found = Parsed(content)
    assert not [tag for tag, attributes in found.tags if attributes.get("src") or attributes.get("srcset")]
    assert [a["href"] for tag, a in found.tags if tag in ("link", "a")] == ["data:,", "#curves"]
    (policy,) = [str(a["content"]) for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    hashes = set(re.findall(r"'sha256-([^']+)'", policy))
    assert hashes == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in found.scripts[1:]}
    assert "connect-src 'self'" in str(Parsed(render([], PageOptions(refresh_s=5))).tags)


def test_everything_from_a_run_is_escaped(tmp_path: Path):
    rows = [{**row, f"train/{EVIL}": float(row["step"]), f"events/{EVIL}": 0} for row in make_rows(5)]
    rows[-1][f"valid/{EVIL}"] = 1.0
    rows[-1]["valid/loss"] = 1.0
    folder = make_run(tmp_path / "evil", rows, {"name": EVIL, "data": {"train": EVIL}, EVIL: EVIL}, message=EVIL)
    (folder / "provenance.json").write_text(json.dumps({EVIL: EVIL, "corpora": [EVIL]}))
    (folder / "changes.jsonl").write_text(json.dumps({"at": EVIL, "step": 1, "changed": {EVIL: [EVIL, EVIL]}}) + "\n")
    (folder / "metrics.json").write_text(json.dumps({EVIL: 1, "labels": [EVIL], "confusion": [[1]]}))
    (run,) = read(folder)
    evil = RunData(EVIL, **{name: value for name, value in vars(run).items() if name != "label"})
    clean = render(read(make_run(tmp_path / "clean", rows)), PageOptions([TextSample("clean", "a", "b")]))
    found = Parsed(render([evil], PageOptions([TextSample(EVIL, EVIL, EVIL), TextSample("x", problem=EVIL)])))
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert len(found.scripts) == len(Parsed(clean).scripts) == 3
    assert found.data["runs"][0]["label"] == EVIL
    assert found.text.count(EVIL) > 15


def test_many_curves_share_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("xlpretrain.evaluation.report_page.curves._MOST_POINTS", 10_000)
    (run,) = read(make_run(tmp_path / "a", make_rows(5000)))
    curves = Parsed(render([run])).data["runs"][0]["curves"]
    lengths = [len(floats(curve["x"], "<u4")) for curve in curves.values()]
    assert sum(lengths) <= 10_000
    assert max(lengths) > 500


def test_pauses_are_kept_on_the_axis_of_time(tmp_path: Path):
    rows = make_rows(9000, crash_at=5432)
    axes = Parsed(render(read(make_run(tmp_path / "a", rows)))).data["runs"][0]["axes"]
    steps, hours = floats(axes["steps"], "<u4"), floats(axes["clock"], "<f8")
    assert len(steps) < 4000
    longest = int(np.argmax(np.diff(hours)))
    assert (steps[longest], steps[longest + 1]) == (5432, 5433)


def test_charts_are_of_metrics_that_say_something(tmp_path: Path):
    rows = [{**row, "mine/new": row["step"] % 3} for row in make_rows(30, evaluate_every=10)]
    charts = charts_of(read(make_run(tmp_path / "a", rows)))
    drawn = {chart.metric: chart for chart in charts.drawn}
    assert drawn["mine/new"].section == "Other metrics"
    assert drawn["valid/lm_accuracy"].title == "Held-out accuracy: lm"
    assert [name for name, _ in charts.constant] == ["events/skipped_updates", "events/rollbacks"]
    assert not {"train/loss/lm", "step", "tokens", "goodput/step_s", "time/logged_at_s"} & drawn.keys()
    assert drawn["train/grad_norm"].is_noisy
    assert not drawn["train/lr"].is_noisy
    assert [chart.metric for chart in charts.drawn][:2] == ["train/loss", "valid/loss"]


def test_runs_without_metrics_say_so(tmp_path: Path):
    found = Parsed(render(read(make_run(tmp_path / "a", []), make_run(tmp_path / "b", make_rows(3)))))
    assert "a has no metrics yet" in found.text
    assert [tag for tag, a in found.tags if tag == "figure"]
    alone = Parsed(render(read(tmp_path / "a")))
    assert "No run has logged metrics yet." in alone.text
    assert not [tag for tag, a in alone.tags if tag == "figure"]


def test_only_pages_of_ours_are_replaced(tmp_path: Path):
    file = tmp_path / "page.html"
    report_page.refuse_to_overwrite(file, force=False)
    report_page.write(file, render([]))
    report_page.refuse_to_overwrite(file, force=False)
    file.write_text("<p>mine</p>")
    with pytest.raises(LaunchError, match="--force"):
        report_page.refuse_to_overwrite(file, force=False)
    report_page.refuse_to_overwrite(file, force=True)
    with pytest.raises(LaunchError, match="a folder"):
        report_page.refuse_to_overwrite(tmp_path, force=True)
    with pytest.raises(LaunchError, match="mkdir -p"):
        report_page.refuse_to_overwrite(tmp_path / "no" / "page.html", force=False)


def test_a_full_disk_leaves_the_old_page(tmp_path: Path):
    with mount_small_disk(tmp_path / "small", size="64k"):
        file = tmp_path / "small" / "page.html"
        report_page.write(file, "old")
        with pytest.raises(LaunchError, match="No space left"):
            report_page.write(file, "x" * 200_000)
        assert file.read_text() == "old"
        assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_the_library_is_the_published_one():
    """Its license and origin lie beside it."""
    folder = ASSETS / "uplot"
    source = json.loads((folder / "SOURCE.json").read_text())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found["SOURCE.json"]
    assert found == source["sha256"]
    assert f"uPlot (v{source['version']})" in (folder / "uPlot.iife.min.js").read_text()[:100]
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert f"uPlot {source['version']} ({source['license']})" in render([])
