"""docs/extend/source.md, done as written."""

import csv
import json
import os
import re
from pathlib import Path

import commands
import documentation
import plugins
from corpus import make_documents
from repository import ROOT

PAGE = "docs/extend/source.md"


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["id", "title", "body"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def test_the_worked_example_is_built_as_json_lines_of_the_same_text(tmp_path: Path):
    plugins.install_page(PAGE, tmp_path)
    rows = [{"id": str(i), "title": f"T;{i}", "body": text} for i, text in enumerate(make_documents(40, seed=3))]
    _write_csv(tmp_path / "reviews.csv", rows)
    lines = [json.dumps({"text": f"{row['title']}\n\n{row['body']}"}) for row in rows]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (config,) = [block.text for block in documentation.blocks(PAGE) if block.language == "yaml"]
    source = next(line for line in config.splitlines() if "type: csv" in line)
    same = config.replace(source, "  - {type: jsonl, path: reviews.jsonl}").replace("data/reviews", "data/same")
    (tmp_path / "same.yaml").write_text(same, encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(config.replace("delimiter", "delimeter"), encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(config.replace("{body}", "{text}").replace("data/rev", "data/brok"))
    used = next(block.text for block in documentation.blocks(PAGE) if block.language == "sh").splitlines()
    assert len(used) == 2
    others = [("same", 0), ("wrong", 2), ("broken", 2)]
    every = [*((line, 0) for line in used), *((f"xlpretrain data build {name}.yaml", code) for name, code in others)]
    environment = commands.environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    output = commands.run_in_one_process(every, cwd=tmp_path, environment=environment)
    for split in ("train", "valid"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (tmp_path / "data" / name / split).rglob("*.tar")}
            for name in ("reviews", "same")
        )
        assert ours and ours == theirs
    assert "sources.0.delimeter  unknown key; did you mean delimiter?" in output
    assert re.search(r"reviews.csv, line \d+: no field 'text'; the available fields are: body, id, title", output)
    assert not (tmp_path / "data" / "broken").exists()
