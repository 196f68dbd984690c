import numpy as np
import pytest
import tokenizers
import torch
from corpus import make_documents
from imported_runs import make_run

import xlpretrain
from xlpretrain import schema
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, DOCUMENT
from xlpretrain.errors import ConfigError
from xlpretrain.objectives import OBJECTIVES
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.likelihood_queries import (
    collate_queries,
    hide_rest_of_word,
    pseudo_likelihood_queries,
    stream_queries,
)

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4, eod=5)
TEXT = [10, 11, 12, 13, 14]


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_stream_asks_for_each_token_once_and_reads_what_precedes_it(ahead: int):
    queries = list(stream_queries([*DOCUMENT.prefix(VOCABULARY) * ahead, *TEXT], seq_len=2, ahead=ahead))
    assert [token for query in queries for token in query.answers] == TEXT
    assert [token for query in queries for token in query.tokens] == ([5] * ahead + TEXT)[:5]
    assert all(len(query.tokens) <= 2 for query in queries)


def test_a_pseudo_likelihood_hides_each_token_from_its_own_sample():
    queries = list(pseudo_likelihood_queries(TEXT, VOCABULARY, CLS_FIRST, seq_len=5, kind="masked"))
    batch = collate_queries(queries, VOCABULARY, terms=("mlm", "sop"), seq_len=5, mem_valid_len=[0] * 5)
    assert batch.inputs.tokens.tolist() == [
        [2, 4, 11, 12, 3],
        [2, 10, 4, 12, 3],
        [2, 10, 11, 4, 3],
        [2, 4, 14, 3, 0],
        [2, 13, 4, 3, 0],
    ]
    assert batch.inputs.attention_mask.sum(1).tolist() == [5, 5, 5, 4, 4]
    assert batch.targets["mlm"].tolist() == TEXT
    assert batch.targets["mlm_positions"].tolist() == [1, 7, 13, 16, 22]
    assert len(batch.targets["sop"]) == 0 and batch.counts == {"mlm": 5, "sop": 0}
    permuted = list(pseudo_likelihood_queries(TEXT, VOCABULARY, CLS_FIRST, seq_len=5, kind="second_stream"))
    batch = collate_queries(permuted, VOCABULARY, terms=("plm",), seq_len=5, mem_valid_len=[0] * 5)
    assert batch.inputs.tokens[0].tolist() == [2, 10, 11, 12, 3]
    assert batch.inputs.target_positions.flatten().tolist() == [1, 2, 3, 1, 2]
    assert torch.equal(batch.inputs.perm_rank.argmax(1), batch.inputs.target_positions[:, 0])


def test_the_rest_of_a_word_is_hidden_too_and_only_one_token_is_predicted():
    begins_word = np.ones(100, bool)
    begins_word[[11, 12, 14]] = False  # words: 10 11 12, and 13 14
    queries = [
        hide_rest_of_word(query, begins_word)
        for query in pseudo_likelihood_queries(TEXT, VOCABULARY, CLS_FIRST, seq_len=9, kind="masked")
    ]
    batch = collate_queries(queries, VOCABULARY, terms=("mlm",), seq_len=9, mem_valid_len=[0] * 5)
    assert batch.inputs.tokens.tolist() == [
        [2, 4, 4, 4, 13, 14, 3],
        [2, 10, 4, 4, 13, 14, 3],
        [2, 10, 11, 4, 13, 14, 3],
        [2, 10, 11, 12, 4, 4, 3],
        [2, 10, 11, 12, 13, 4, 3],
    ]
    assert batch.targets["mlm"].tolist() == TEXT
    assert batch.targets["mlm_positions"].tolist() == [1, 9, 17, 25, 33]
    permuted = pseudo_likelihood_queries(TEXT, VOCABULARY, CLS_FIRST, seq_len=9, kind="second_stream")
    queries = [hide_rest_of_word(query, begins_word) for query in permuted]
    batch = collate_queries(queries, VOCABULARY, terms=("plm",), seq_len=9, mem_valid_len=[0] * 5)
    assert batch.inputs.perm_rank[0].tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert batch.inputs.perm_rank[4].tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert batch.inputs.target_positions.tolist() == [[1], [2], [3], [4], [5]]


def test_the_words_of_wordpiece_are_those_of_the_library():
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = (
        tokenizers.normalizers.BertNormalizer(),
        tokenizers.pre_tokenizers.BertPreTokenizer(),
    )
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=symbols, show_progress=False)
    made.train_from_iterator([*make_documents(50), "1984 日本語"], trainer)
    tokenizer = HuggingFaceTokenizer(made.to_str().encode(), name="wordpieces")
    for text in [*make_documents(5, seed=2), "Sted-gigo's 1984: 日本語 (é)."]:
        encoded = made.encode(text, add_special_tokens=False)
        ids, words = tokenizer.encode(text), encoded.word_ids
        assert ids == encoded.ids
        queries = pseudo_likelihood_queries(ids, tokenizer.vocabulary, CLS_FIRST, seq_len=10_000, kind="masked")
        for at, query in enumerate(queries):
            hidden = hide_rest_of_word(query, tokenizer.word_starts()).hidden
            assert [place - 1 for place in hidden] == [i for i in range(at + 1, len(ids)) if words[i] == words[at]]


def test_every_objective_says_what_can_be_done_with_it_and_a_derived_one_says_it_anew():
    kinds = {name: kind for name, kind in OBJECTIVES.items() if name != "mixed"}
    heads = {"masked_lm": OBJECTIVES["masked_lm"]().hub_head}  # depends on `shifted`
    found = {name: (heads.get(name, kind.hub_head), kind.generates) for name, kind in kinds.items()}
    assert found == {
        "causal_lm": ("causal_lm", True),
        "permutation_lm": ("masked_lm", False),
        "masked_lm": ("masked_lm", False),
        **dict.fromkeys(("classify", "multilabel", "regress", "tag", "choose", "answer"), (None, False)),
    }

    class Ahead(CausalLM):
        pass

    class Weighted(CausalLM):
        hub_head = CausalLM.hub_head
        generates = CausalLM.generates
        likelihood_queries = CausalLM.likelihood_queries

    assert (Ahead.hub_head, Ahead.generates) == (None, False)
    with pytest.raises(ConfigError, match="its class Ahead does not define `likelihood_queries`"):
        Ahead().likelihood_queries(TEXT, VOCABULARY)
    assert (Weighted.hub_head, Weighted.generates) == ("causal_lm", True)
    assert len(list(Weighted().likelihood_queries(TEXT, VOCABULARY))) == 1


def test_a_classifier_may_spell_out_its_layout():
    keys = {"type": "classify", "labels": ["a", "b"], "layout": "mask A sep | mask A sep B:1 sep:1"}
    assert str(schema.validate(OBJECTIVES["classify"], keys, "test").token_layout) == keys["layout"]
    with pytest.raises(ConfigError, match=r"layout +must be one of cls_first, cls_last, document, or written out"):
        schema.validate(OBJECTIVES["classify"], keys | {"layout": "cls_middle"}, "test")


def test_a_use_that_is_not_declared_is_refused_by_its_name(tmp_path, tiny_dataset):
    class Bare(CausalLM):
        @property
        def token_layout(self) -> None:
            return None

    run = xlpretrain.load(make_run(tmp_path, tiny_dataset, {"type": "transformer_xl"}).path, device="cpu")
    bare = Bare(**run.config.objective.model_dump())
    with pytest.raises(
        ConfigError, match="not supported by objective causal_lm because its class Bare does not declare `token_layout`"
    ):
        bare.declared(bare.token_layout, "token_layout")
