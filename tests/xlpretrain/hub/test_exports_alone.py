"""Exported fine-tuned models, used with transformers alone: tests/support/transformers_alone.py, in one process.

Modules: heads_xlpretrain.py.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import finish, start
from imported_runs import make_run, make_task_run
from task_files import task_files

from xlpretrain.hub.export import export

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers_alone

PRE_NORM = {"type": "bert", "pre_norm": True, "max_positions": 128}
EXPORTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "transformer-xl, classify": ({"type": "transformer_xl"}, "classify"),
    "transformer-xl, regress": ({"type": "transformer_xl"}, "regress"),
    "transformer-xl, tag": ({"type": "transformer_xl"}, "tag"),
    "transformer-xl, choose": ({"type": "transformer_xl"}, "choose"),
    "transformer-xl, answer": ({"type": "transformer_xl"}, "answer"),
    "pre-norm, classify": (PRE_NORM, "classify"),
    "pre-norm, tag": (PRE_NORM, "tag"),
    "bert, classify": ({"type": "bert", "max_positions": 128}, "classify"),
    "albert, tag": ({"type": "albert", "max_positions": 128, "d_embed": 8}, "tag"),
    "bert, answer": ({"type": "bert", "max_positions": 128}, "answer"),
    "xlnet, classify": ({"type": "xlnet"}, "classify"),
    "xlnet, tag": ({"type": "xlnet"}, "tag"),
    "xlnet, choose": ({"type": "xlnet"}, "choose"),
    "xlnet, answer": ({"type": "xlnet"}, "answer"),
    "transformer-xl, pretrained": ({"type": "transformer_xl"}, None),
    "pre-norm, pretrained": (PRE_NORM, None),
}
PRETRAINED = transformers_alone.a_pretrained_model_gets_the_head_of_any_task.__name__
CASES = [
    (name, check)
    for name, (_, task) in EXPORTS.items()
    for check in ([PRETRAINED] if task is None else [check.__name__ for check in transformers_alone.CHECKS])
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> dict[str, dict[str, str | None]]:
    root = tmp_path_factory.mktemp("alone")
    folders: dict[str, str] = {}
    for name, (model, task) in EXPORTS.items():
        place = root / name.replace(", ", "-")
        place.mkdir()
        folder = make_run(place / "runs", tiny_dataset, model)
        if task is not None:
            folder = make_task_run(folder, task, task_files(place, task))
        export(folder, place / "out")
        folders[name] = str(place / "out")
    (root / "exports.json").write_text(json.dumps(folders))
    script = Path(transformers_alone.__file__)
    process = start(script, root / "exports.json", root / "results.json", program="python")
    finish(process, expect=0, timeout_s=800)
    found: dict[str, dict[str, str | None]] = json.loads((root / "results.json").read_text())
    return found


@pytest.mark.full
@pytest.mark.parametrize(("name", "check"), CASES)
def test_exports_behave_as_users_of_transformers_expect(name: str, check: str, results: dict[str, dict[str, str]]):
    failure = results[name][check]
    assert failure is None, failure
