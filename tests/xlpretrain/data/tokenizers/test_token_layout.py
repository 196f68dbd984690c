import numpy as np
import pytest

from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, CLS_LAST, DOCUMENT, LAYOUTS, TokenLayout

VOCABULARY = Vocabulary(size=100, pad=0, unk=1, cls=2, sep=3, mask=4, eod=5)
A, B = [10, 11], [20]


@pytest.mark.parametrize(
    ("layout", "texts", "tokens", "segments", "places"),
    [
        (CLS_FIRST, [], [2], [0], []),
        (CLS_FIRST, [A], [2, 10, 11, 3], [0] * 4, [(1, 3)]),
        (CLS_FIRST, [A, B], [2, 10, 11, 3, 20, 3], [0, 0, 0, 0, 1, 1], [(1, 3), (4, 5)]),
        (CLS_LAST, [], [], [], []),
        (CLS_LAST, [A], [10, 11, 3, 2], [0, 0, 0, 2], [(0, 2)]),
        (CLS_LAST, [A, B], [10, 11, 3, 20, 3, 2], [0, 0, 0, 1, 1, 2], [(0, 2), (3, 4)]),
        (DOCUMENT, [], [5], [0], []),
        (DOCUMENT, [A], [5, 10, 11, 5], [0] * 4, [(1, 3)]),
        (DOCUMENT, [A, B], [5, 10, 11, 5, 20, 5], [0] * 6, [(1, 3), (4, 5)]),
    ],
)
def test_texts_stand_among_special_tokens_as_declared(layout, texts, tokens, segments, places):
    found = layout.lay_out(texts, VOCABULARY)
    assert (found.tokens.tolist(), found.segments.tolist(), found.texts) == (tokens, segments, places)
    assert layout.num_symbols(len(texts)) == len(tokens) - sum(map(len, texts))
    row, of_row = np.full((2, 9), 7), np.zeros((2, 9), np.int64)
    length, written = layout.write([np.array(text) for text in texts], VOCABULARY, row[1, 2:], of_row[1, 2:])
    assert (length, written) == (len(tokens), places)
    assert row.tolist() == [[7] * 9, [7, 7, *tokens, *[7] * (7 - len(tokens))]]
    assert of_row[1].tolist() == [0, 0, *segments, *[0] * (7 - len(tokens))]


def test_what_others_ask_of_a_layout_follows_from_its_parts():
    found = {
        name: (one.cls_position, one.is_plain, one.prefix(VOCABULARY), one.end(VOCABULARY))
        for name, one in LAYOUTS.items()
    }
    assert found == {
        "cls_first": ("first", False, [2], 3),
        "cls_last": ("last", False, [], 3),
        "document": (None, True, [5], 5),
    }
    assert [CLS_FIRST.num_segments(n) for n in (1, 2)] == [1, 2]
    assert [CLS_LAST.num_segments(n) for n in (1, 2)] == [3, 3]
    assert TokenLayout("A", "A B").end(VOCABULARY) is None


def test_a_layout_is_read_back_from_what_it_is_written_as():
    own = TokenLayout("mask cls A", "mask cls A sep B:3")
    assert [TokenLayout.parse(str(layout)) for layout in (*LAYOUTS.values(), own)] == [*LAYOUTS.values(), own]
    assert str(CLS_LAST) == "cls_last" and str(own) == "mask cls A | mask cls A sep B:3"


@pytest.mark.parametrize("text", ["cls_middle", "A sep", "A | B A", "A | A B B", "cls A | bos A B", "A:x | A B", ""])
def test_a_layout_without_its_texts_or_of_unknown_parts_is_refused(text: str):
    with pytest.raises(ValueError, match="a layout has A"):
        TokenLayout.parse(text)
