"""Runs whose data, or whose own folder, lies elsewhere by now: content decides, and a run keeps what it needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from built_datasets import build_dataset, write_jsonl
from corpus import make_documents
from imported_runs import make_run
from labelled_files import PLAIN, _files
from typer.testing import CliRunner

import xlpretrain
from launcher.cli.main import app
from launcher.cli.monitor import find_runs
from launcher.local.options import StartOptions
from launcher.local.train import start_training
from launcher.slurm.records import Job, SlurmFolder
from xlpretrain import schema
from xlpretrain.__main__ import main
from xlpretrain.config import run_config
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.byte_word import ByteTokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.run_dir.layout import RunDir


@pytest.fixture(autouse=True, scope="module")
def few_threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread: such small products only lose by more
        yield


def build_pair(out: Path, tokenizer: dict[str, object], *, seed: int = 0, **settings: object) -> Path:
    """A dataset with a held-out split, in blocks of 256 tokens."""
    corpus = write_jsonl(out.with_suffix(".jsonl"), make_documents(60, seed=seed))
    sources = [{"type": "jsonl", "path": str(corpus)}]
    return build_dataset(out, sources=sources, tokenizer=tokenizer, splits={"valid": 0.2}, block_tokens=256, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Datasets a and b, and runs on a: whole of 8 steps, cut of the first 4. Shared: never change what is in it."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        build_pair(folder / name, {"path": str(tiny_tokenizer)}, seed=seed)
    config = write_config(folder, folder / "a")
    assert main([str(config), "name=whole"]) == main([str(config), "name=cut", "max_steps=4"]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, as if it had been made here."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for config in [*tmp_path.glob("runs/*/config.yaml"), tmp_path / "run.yaml"]:
        config.write_text(config.read_text().replace(str(made), str(tmp_path)))
    return tmp_path


def write_config(folder: Path, dataset: Path, **changes: object) -> Path:
    return commands.write_config(
        folder / "run.yaml",
        dataset,
        **{
            "engine": {"type": "plain", "precision": "fp32"},
            "schedule": {"type": "cosine", "warmup_steps": 2, "total_steps": 8},
            "wandb": {"mode": "disabled"},
            "eval": {"every_steps": 2, "max_tokens": 1000},
            "max_steps": 8,
            **changes,
        },
    )


def go_on(run: Path, *overrides: str) -> int:
    """What each rank of `xlpretrain resume` runs."""
    return main([str(run / "config.yaml"), *find_runs.at_its_place(run, overrides)])


def as_before(run: Path) -> None:
    """Make the folder one of an earlier version: no tokenizer, no digests by key."""
    shutil.rmtree(run / "tokenizer")
    provenance = json.loads((run / "provenance.json").read_text())
    del provenance["contents"], provenance["corpora"]
    (run / "provenance.json").write_text(json.dumps(provenance))


def call(*arguments: object, expect: int = 0) -> str:
    """What a command prints, in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if expect == 0:
        assert done.exit_code == 0, done.output
        return done.output
    assert isinstance(done.exception, Exception)
    return str(done.exception)


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files with their times and bytes."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("earlier", [False, True], ids=["", "of an earlier version"])
def test_with_its_data_elsewhere_a_run_goes_on_in_every_bit(
    here: Path, capsys: pytest.CaptureFixture[str], earlier: bool
):
    run, dataset = here / "runs" / "cut", (here / "a").rename(here / "elsewhere")
    if earlier:
        as_before(run)
    else:
        shutil.rmtree(dataset / "tokenizer")  # the run has its own
    assert go_on(run, "max_steps=8") == 2
    told = capsys.readouterr().err
    assert "a/train: no dataset here" in told and told.rstrip().endswith("data.train=PLACE data.valid=PLACE")
    moved = [f"data.{split}={dataset / split}" for split in ("train", "valid")]
    assert go_on(run, *moved, "max_steps=6") == 0
    changed = f"changed since the last attempt: data.train: '{here / 'a/train'}' -> '{dataset / 'train'}'"
    assert changed in capsys.readouterr().out
    history = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert [(line["step"], sorted(line["changed"])) for line in history] == [
        (4, ["data.train", "data.valid", "max_steps"])
    ]
    assert history[0]["changed"]["max_steps"] == [4, 6]
    assert history[0]["changed"]["data.train"] == [str(here / "a/train"), str(dataset / "train")]
    assert go_on(run, "max_steps=8") == 0  # by now it knows
    history = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert [line["changed"].get("max_steps") for line in history] == [[4, 6], [6, 8]]
    assert "data.train" not in capsys.readouterr().out
    assert commands.curve(run) == commands.curve(here / "runs" / "whole")
    assert (run / "tokenizer" / "spiece.model").read_bytes() == Path(here / "b/tokenizer/spiece.model").read_bytes()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_other_data_is_refused_wherever_it_lies_and_nothing_is_touched(
    here: Path, capsys: pytest.CaptureFixture[str], split: str
):
    run, ours, other = here / "runs" / "cut", here / "a" / split, here / "b" / split
    was, now = (TokenDataset.open(place).fingerprint[:12] for place in (ours, other))
    before = state_of(run)
    assert go_on(run, f"data.{split}={other}", "max_steps=8") == 2
    told = capsys.readouterr().err
    assert f"data.{split}  was '{ours}' (content {was}) so far, now '{other}' (content {now})" in told
    shutil.rmtree(ours)
    shutil.copytree(other, ours)  # another by the same path
    assert go_on(run, "max_steps=8") == 2
    told = capsys.readouterr().err
    assert f"data.{split}  was '{ours}' (content {was}) so far, now '{ours}' (content {now})" in told
    assert state_of(run) == before
    if split == "train":
        as_before(run)
        before = state_of(run)
        assert go_on(run, "max_steps=8") == 2
        assert f"began with other data: {ours} was {was} then and is {now} now" in capsys.readouterr().err
        assert state_of(run) == before
    loaded = xlpretrain.load(run, device="cpu")  # nor are there figures of it
    with pytest.raises(DataError, match=f"began with other data: {ours} was {was} then and is {now} now"):
        _ = getattr(loaded, split)
    assert loaded.evaluate(ours, config=loaded.config.eval).main.count > 0  # unless it is asked for
    if split == "train":
        assert "began with other data" in call("data", "show", run, "--sample", 3, expect=2)


def test_corpora_of_a_mixture_move_one_by_one_and_keep_their_names(here: Path, capsys: pytest.CaptureFixture[str]):
    folders = {name: (here / old).rename(here / name) for old, name in (("a", "web"), ("b", "books"))}
    train = [{"path": str(folder / "train"), "weight": w} for w, folder in zip((3, 1), folders.values(), strict=True)]
    config = write_config(here, folders["web"], data={"train": train, "valid": str(folders["web"] / "valid")})
    assert main([str(config), "name=all"]) == 0
    assert main([str(config), "name=part", "max_steps=4"]) == 0
    run, elsewhere = here / "runs" / "part", here / "elsewhere" / "deeper"
    elsewhere.parent.mkdir()
    folders["books"].rename(elsewhere)
    capsys.readouterr()
    moved = f"data.train.1.path={elsewhere / 'train'}"
    for wrong, told in (
        (f"data.train.1.path={folders['web'] / 'valid'}", "data.train.1.path  was"),
        ("data.train.1.weight=2", "data.train.1.weight  was 1.0 so far, now 2.0"),
    ):
        assert go_on(run, moved, wrong, "max_steps=8") == 2
        assert told in capsys.readouterr().err
    exchanged = [f"data.train.0.path={elsewhere / 'train'}", f"data.train.1.path={folders['web'] / 'train'}"]
    assert go_on(run, *exchanged, "max_steps=8") == 2
    assert "2 problems" in capsys.readouterr().err
    as_before(run)  # then names come from the paths in its config
    assert go_on(run, moved, "max_steps=6") == 0
    elsewhere = elsewhere.rename(here / "third")
    assert go_on(run, f"data.train.1.path={elsewhere / 'train'}", "max_steps=8") == 0
    assert commands.curve(run) == commands.curve(here / "runs" / "all")
    for row in commands.read_metrics(run):
        assert {key for key in row if key.startswith("data/epoch/")} == {"data/epoch/web", "data/epoch/books"}


def test_a_copied_run_goes_on_where_it_lies_and_leaves_the_old_one_alone(here: Path):
    run, copy = here / "runs" / "cut", here / "an: other # place" / "1"
    shutil.copytree(run, copy)
    before = state_of(run)
    assert go_on(copy, "max_steps=8") == 0
    assert state_of(run) == before
    assert commands.curve(copy) == commands.curve(here / "runs" / "whole")
    assert f"already finished: 8 steps in {copy}" in call("resume", copy, "--nproc", 1)
    assert call("resume", copy, "name=cut", expect=2).endswith("move that instead")
    assert call("resume", run.rename(here / "cut (copy)"), expect=2).endswith("rename the folder")


def test_what_needs_the_tokenizer_alone_asks_for_no_data_and_writes_nothing(here: Path):
    dataset, run = here / "a", here / "runs" / "whole"
    texts = here / "texts.txt"
    texts.write_text("The station.\nA light.\n")

    def all_of_it(out: str, *moved: str) -> list[str]:
        call("export", run, "--to", here / out)
        kept: dict[str, object] = {p.name: p.read_bytes() for p in (here / out).iterdir()}
        described = json.loads((here / out / "config.json").read_text())
        del kept["README.md"], described["xlpretrain"]["files"]["README.md"]  # the card tells of the data what it can
        kept["config.json"] = described
        return [
            call("generate", run, "--prompt", "The", "--tokens", 20),
            call("score", run, "--input", texts),
            call("data", "show", run, "--sample", 3, *moved),
            call("report", run, *moved).partition("Next steps")[0],
            str(sorted(kept.items())),
        ]

    before, files = all_of_it("out"), state_of(run)
    valid = xlpretrain.load(run, device="cpu").evaluate(
        config=(found := xlpretrain.load(run, device="cpu")).config.eval
    )
    dataset = dataset.rename(here / "elsewhere")
    moved = [f"data.{split}={dataset / split}" for split in ("train", "valid")]
    assert all_of_it("again", *moved) == before
    scored = xlpretrain.load(run, device="cpu").evaluate(dataset / "valid", config=found.config.eval)
    assert scored.scores == valid.scores

    shutil.rmtree(dataset / "train")  # the held-out split is all there is
    without = call("report", run, f"data.valid={dataset / 'valid'}")
    assert "not available" in without and "unigram" not in without and "memory 24, as trained" in without
    shutil.rmtree(dataset)
    without = call("report", run)
    assert "held-out metrics of the run's evaluation after step 8" in without
    assert f"{commands.read_metrics(run)[-1]['valid/loss']:.4f}" in without
    with pytest.raises(DataError, match=r"data\.train=PLACE data\.valid=PLACE"):
        xlpretrain.load(run, device="cpu").evaluate(config=found.config.eval)
    assert "only where the data lies may be given" in call("report", run, "model.d_model=8", expect=2)
    assert "was not available" in (call("export", run, "--to", here / "x"), (here / "x/README.md").read_text())[1]
    assert state_of(run) == files


def test_eval_takes_the_split_that_it_is_told_of(here: Path):
    run, dataset = here / "runs" / "whole", (here / "a").rename(here / "elsewhere")
    shutil.rmtree(dataset / "train")
    last = commands.read_metrics(run)[-1]["valid/loss"]
    limits = ("--max-tokens", 1000, "--nproc", 1)
    out, _ = commands.run("eval", run, "--data", dataset / "valid", *limits)
    assert float(out.split("nats each")[1].split()[0]) == pytest.approx(last, rel=1e-6)

    # The protocol of the paper: another memory, shorter samples, limited distances, the same length for all.
    protocol = ("--mem-len", 30, "--seq-len", 8, "--clamp-len", 6, "--same-length", "--num-streams", 2)
    out, _ = commands.run("eval", run, f"data.valid={dataset / 'valid'}", *protocol, *limits)
    assert "memory 30, 8 tokens in a sample, distances up to 6, same length: 768 tokens" in out
    by_hand = xlpretrain.load(run, device="cpu")
    by_hand.model.backbone.clamp_len, by_hand.model.backbone.same_length = 6, True
    lengths = EvalConfig(mem_len=30, seq_len=8, num_streams=2, max_tokens=1000)
    expected = by_hand.evaluate(dataset / "valid", config=lengths).main.loss
    assert float(out.split("nats each")[1].split()[0]) == pytest.approx(expected, rel=1e-6)
    assert "data.valid=PLACE" in commands.refused("eval", run, *limits)


def test_a_submitted_run_that_was_copied_to_where_there_is_no_slurm_says_how_it_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    run = here / "runs" / "cut"
    records = SlurmFolder.of(RunDir(run))
    records.path.mkdir()
    records.cluster.write_text("tasks_per_node: 1\n")
    records.write_job(Job("12", "big", 0.0, "1", ""))
    monkeypatch.setenv("PATH", str(here))
    assert f"`xlpretrain resume {run} --here` resumes it here" in call("resume", run, "max_steps=8", expect=2)


def test_a_run_without_held_out_data_has_a_report(here: Path):
    run = here / "runs" / "cut"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"valid: {here / 'a/valid'}", "valid: null"))
    (run / "metrics.jsonl").unlink()
    assert "no held-out data" in call("report", run)


@pytest.mark.parametrize("kind", ["bytes", "word", "wordpiece"])
def test_every_kind_of_tokenizer_is_kept(tmp_path: Path, kind: str):
    tokenizer: dict[str, object] = {"model_type": kind, **({"vocab_size": 200} if kind == "word" else {})}
    if kind == "wordpiece":
        tokenizers = pytest.importorskip("tokenizers")
        words = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=symbols)
        words.train_from_iterator(make_documents(50), trainer)
        words.save(str(tmp_path / "tokenizer.json"))
        tokenizer = {"path": str(tmp_path / "tokenizer.json")}
    lines = {} if kind == "wordpiece" else {"sentences": {"splitter": "lines"}}
    dataset = build_pair(tmp_path / "a", tokenizer, **lines)
    assert main([str(write_config(tmp_path, dataset)), "max_steps=2"]) == 0
    expected = xlpretrain.load(tmp_path / "runs" / "run", device="cpu").tokenizer.encode("The station")
    (theirs,) = (dataset / "tokenizer").iterdir()
    (ours,) = (tmp_path / "runs" / "run" / "tokenizer").iterdir()
    assert (ours.name, ours.read_bytes()) == (theirs.name, theirs.read_bytes())
    shutil.rmtree(dataset)
    assert xlpretrain.load(tmp_path / "runs" / "run", device="cpu").tokenizer.encode("The station") == expected


def test_a_run_of_an_earlier_version_takes_the_right_tokenizer_by_hand(here: Path):
    run = make_run(here, here / "a", {"type": "transformer_xl"}, name="old")
    text = xlpretrain.load(run.path, device="cpu").generate("The", num_tokens=5)  # found beside the data
    gone = (here / "a").rename(here / "gone")
    with pytest.raises(DataError, match=f"copy the tokenizer/ folder of its data to {run.tokenizer}"):
        xlpretrain.load(run.path, device="cpu")
    run.keep_tokenizer("vocabulary.json", ByteTokenizer.make().model)
    with pytest.raises(DataError, match="is not the tokenizer of"):
        xlpretrain.load(run.path, device="cpu")
    shutil.rmtree(run.tokenizer)
    run.tokenizer.mkdir()  # as if it had been killed in the midst
    with pytest.raises(DataError, match="copy the tokenizer/ folder"):
        xlpretrain.load(run.path, device="cpu")
    run.tokenizer.rmdir()
    shutil.copytree(gone / "tokenizer", run.tokenizer)
    assert xlpretrain.load(run.path, device="cpu").generate("The", num_tokens=5) == text


def test_labelled_files_their_tokenizer_and_the_weights_to_begin_with_may_move(
    tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
):
    source, files = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}), _files(tmp_path)
    changes = [*PLAIN, "max_steps=6", "schedule.warmup_steps=1", "eval.every_steps=3", "checkpoint.every_steps=3"]

    def tuned(name: str, of: RunDir, files: dict[str, Path], *more: str) -> Path:
        config = finetune_config(of, **files, name=name, runs_dir=tmp_path / "runs", overrides=[*changes, *more])
        (tmp_path / "tuned.yaml").write_text(schema.dump(config))
        return tmp_path / "tuned.yaml"

    assert main([str(tuned("whole", source, files))]) == 0
    assert main([str(tuned("cut", source, files, "max_steps=3", "schedule.total_steps=6"))]) == 0
    (tmp_path / "new").mkdir()
    moved = {name: path.rename(tmp_path / "new" / f"{name}-2.csv") for name, path in files.items()}
    source = RunDir(source.path.rename(tmp_path / "source"))
    shutil.copytree(tiny_dataset / "tokenizer", source.tokenizer)
    again = tuned("cut", source, moved, "schedule.total_steps=6")
    assert main([str(again)]) == 0
    out = capsys.readouterr().out
    for key in ("data.train", "data.valid", "data.tokenizer", "init_from"):
        assert f"changed since the last attempt: {key}: " in out
    run = tmp_path / "runs" / "cut"
    assert commands.curve(run) == commands.curve(tmp_path / "runs" / "whole")

    code = start_training(run_config.load(again), StartOptions(1))
    assert code == 0 and len((run / "predictions.csv").read_text().splitlines()) == 41
    shutil.rmtree(source.path)  # the tokenizer and the weights lie with the run by now
    assert go_on(run, "max_steps=7") == 0
    other = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}, name="other")
    weights = next((other.checkpoints / "step-00000000").glob("*.safetensors"))
    assert weights.is_file()
    capsys.readouterr()
    assert go_on(run, f"data.tokenizer={tiny_dataset / 'tokenizer' / 'spiece.model'}", "max_steps=8") == 0
    moved["valid"].write_text(moved["valid"].read_text() + "Bation more,aye\n")
    assert go_on(run, "max_steps=9") == 2
    assert "data.valid  was" in capsys.readouterr().err


def test_other_weights_to_begin_with_are_refused(here: Path, capsys: pytest.CaptureFixture[str]):
    config, first, second, run = here / "run.yaml", *(here / "runs" / name for name in ("cut", "whole", "run"))
    assert main([str(config), f"init_from={here / 'none'}"]) == 2
    assert "no checkpoint there" in capsys.readouterr().err and not run.exists()
    assert main([str(config), f"init_from={first}", "max_steps=2"]) == 0
    assert go_on(run, f"init_from={second}", "max_steps=4") == 2
    assert f"init_from  was '{first}' (content " in capsys.readouterr().err
    assert go_on(run, f"init_from={first.rename(here / 'elsewhere')}", "max_steps=4") == 0


def test_a_submission_is_news_until_a_start_has_changed_the_config(tmp_path: Path):
    run = RunDir(tmp_path / "run")
    records = SlurmFolder.of(run)
    records.path.mkdir(parents=True)
    assert records.newest_config() is None
    records.write_config("max_steps: 1\n")
    assert records.newest_config() == records.config
    for step, (submitted, started) in enumerate([("1", "1"), ("2", "2"), ("2", "3")]):
        records.write_config(f"max_steps: {submitted}\n")
        assert records.newest_config() == records.config, step
        run.create(config=f"max_steps: {started}\n", provenance={})
        (tmp_path / "touched").touch()
        records.config.touch()  # as a copy may leave them
        newest = records.newest_config()
        assert newest is not None and schema.read_yaml(newest) == {"max_steps": int(started)}
    with pytest.raises(ConfigError, match="goes on in its own folder"):
        find_runs.at_its_place(run.path, ["runs_dir=elsewhere"])
