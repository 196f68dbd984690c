import io
from pathlib import Path

import commands
import pytest
from rich.console import Console

from xlpretrain.config import run_config
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.sample_viewer import find_document, show_document, show_sample

OBJECTIVES = {
    "causal": ({"type": "causal_lm", "seq_len": 16}, "transformer_xl", 24),
    "permutation": (
        {"type": "permutation_lm", "seq_len": 32, "reuse_len": 16, "perm_size": 8, "num_predict": 6},
        "xlnet",
        24,
    ),
    "masked": ({"type": "masked_lm", "seq_len": 32}, "albert", 0),
}


def shown(function, *arguments: object, **options: int) -> str:
    file = io.StringIO()
    function(*arguments, **options, console=Console(file=file, width=200))
    return file.getvalue()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sample_is_what_the_collator_gives(objective: str, tiny_dataset: Path, tmp_path: Path):
    made, model, mem_len = OBJECTIVES[objective]
    shape = {"type": model, "num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 16, "mem_len": mem_len}
    path = commands.write_config(tmp_path / "a.yaml", tiny_dataset, objective=made, model=shape, global_batch_size=4)
    config = run_config.load(path)
    train = TokenDataset.open(tiny_dataset / "train")
    tokenizer = train.open_tokenizer()
    row = config.objective.training_samples(
        train, mem_len=mem_len, num_streams=4, seed=config.seed, shuffle_blocks=64
    ).sample(step=7, stream=3)
    batch = config.objective.collator(tokenizer, seed=config.seed)([row])
    printed = shown(show_sample, path, step=7, stream=3)
    lines = printed.split("\nposition ", 1)[1].splitlines()[1:]
    valid = (
        batch.inputs.tokens.shape[1] if batch.inputs.attention_mask is None else int(batch.inputs.attention_mask.sum())
    )
    for position in range(valid):
        cells = lines[position].split()
        assert cells[:2] == [str(position), tokenizer.id_to_token(int(batch.inputs.tokens[0, position]))]
        if batch.inputs.perm_rank is not None:
            assert cells[-1] == str(int(batch.inputs.perm_rank[0, position]))
    term = config.objective.terms[0]
    assert f"{term}: {batch.counts[term]} tokens to predict" in printed
    if objective == "causal":
        assert lines[3].split()[2] == tokenizer.id_to_token(int(batch.targets["lm"][3]))
    else:
        assert printed.split("\nposition ", 1)[0].count("⟦") == batch.counts[term]
    with pytest.raises(ConfigError, match="expected a stream from 0 to 3, got 4"):
        show_sample(path, step=0, stream=4)


def test_a_document_is_shown_whole(tiny_dataset: Path):
    train = TokenDataset.open(tiny_dataset / "train")
    ends = train.document_ends(0, train.num_tokens)
    for number in (0, 1, len(ends) // 2, len(ends) - 1):
        start = int(ends[number - 1]) + 1 if number else 0
        assert find_document(train, number) == (start, int(ends[number]) + 1)
    start, stop = find_document(train, 700)
    printed = shown(show_document, tiny_dataset / "train", 700)
    lines = [line.split() for line in printed.splitlines()]
    pieces = [train.open_tokenizer().id_to_token(token) for token in train.tokens(start, stop)]
    assert [piece for line in lines if line and line[0] in ("<eod>", *pieces) for piece in line] == pieces
    assert "<eod>" in printed and f"document 700 of {train.num_documents:,}" in printed
    with pytest.raises(DataError, match="has documents 0 to"):
        show_document(tiny_dataset / "train", train.num_documents)


def test_the_command_shows_a_document(tiny_dataset: Path):
    out, _ = commands.run("data", "show", tiny_dataset / "train", "--document", 3)
    assert out.startswith("document 3 of")


def test_a_sample_of_a_run_with_stages_is_that_of_its_step(tiny_dataset: Path, tmp_path: Path):
    stages = [{"until": {"step": 5}, "objective": {"seq_len": 8}, "global_batch_size": 2}, {}]
    path = commands.write_config(tmp_path / "a.yaml", tiny_dataset, stages=stages, global_batch_size=4, max_steps=9)
    for step, stream, length in ((4, 1, 8), (5, 3, 16)):
        printed = shown(show_sample, path, step=step, stream=stream)
        assert f"{length + 1} tokens of the data" in printed and f"lm: {length} tokens to predict" in printed
    with pytest.raises(ConfigError, match="expected a stream from 0 to 1, got 3"):
        show_sample(path, step=4, stream=3)
