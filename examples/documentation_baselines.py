"""Score simple methods on the tasks of examples/documentation_tasks.py, on the same files.

    python examples/documentation_baselines.py        # reads documentation/, prints a table

Needs scikit-learn and SciPy: pip install 'xlpretrain[classify]'.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import pearsonr
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from xlpretrain.data.tables.multiple_choice import MultipleChoice, read_choices
from xlpretrain.data.tables.squad import Question, read_squad
from xlpretrain.data.tables.tagged_words import TaggedSentence, read_tagged
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.objectives.tasks.metrics import answers
from xlpretrain.objectives.tasks.metrics.entities import entity_scores

NAME = re.compile(r"[A-Z]\w*[A-Z_]\w*|\w+[._]\w+(?:[._]\w+)*")
"""Words that look like names: capitals, underscores or dots inside."""


def main() -> None:
    """Print a table of the scores on the validation and test files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("documentation"))
    data = parser.parse_args().data
    print("| task | metric | method | valid | test |\n|---|---|---|---|---|")
    for task, metric, score in (
        ("tag", "F1 of entities", tag),
        ("answer", "F1", answer),
        ("choose", "accuracy", choose),
        ("regress", "Pearson's correlation", regress),
    ):
        valid, test = (dict(score(data, split)) for split in ("valid", "test"))
        for method in valid:
            print(f"| {task} | {metric} | {method} | {valid[method]:.4f} | {test[method]:.4f} |")


def tag(data: Path, split: str) -> Iterator[tuple[str, float]]:
    """Entities by the words' tags in training, and by a linear model of the words' form and neighbours."""
    train, held = (read_tagged(data / f"tag-{name}.conll", words="", tags="") for name in ("train", split))
    truth = [sentence.tags or () for sentence in held]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for word, given in zip(sentence.words, sentence.tags or (), strict=True):
            counts[word][given] += 1
    known = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    found = [[known.get(word, "O") for word in sentence.words] for sentence in held]
    yield "each word's commonest tag in training", entity_scores(truth, found).f1
    linear = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=300))
    linear.fit([of for sentence in train for of in features(sentence)], [t for s in train for t in s.tags or ()])
    found = [list(linear.predict(list(features(sentence)))) for sentence in held]
    yield "logistic regression on words, forms and neighbours", entity_scores(truth, found).f1


def features(sentence: TaggedSentence) -> Iterator[dict[str, bool]]:
    """The features of each word: itself, its form, its ends, and the words beside it."""
    words = ["<", *sentence.words, ">"]
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        form = re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "0", re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", word))))
        yield {f"w={word}": True, f"f={form}": True, f"e={word[-3:]}": True, f"b={before}": True, f"a={after}": True}


def answer(data: Path, split: str) -> Iterator[tuple[str, float]]:
    """No answer, the first name, and the name whose neighbours share most words with the question."""
    train, held = (read_squad(data / f"answer-{name}.json") for name in ("train", split))
    seen = {text for question in train for text in question.texts if text}

    def names(question: Question) -> list[re.Match[str]]:
        words = re.finditer(r"\w+(?:\.\w+)*", question.context)
        asked = set(re.findall(r"\w+(?:\.\w+)*", question.question))
        return [w for w in words if (NAME.fullmatch(w[0]) or w[0] in seen) and w[0] not in asked]

    def shared(question: Question, name: re.Match[str]) -> float:
        near = question.context[max(name.start() - 60, 0) : name.end() + 60]
        asked = set(re.findall(r"[a-z]{3,}", question.question.lower()))
        return len(asked & set(re.findall(r"[a-z]{3,}", near.lower()))) / max(len(asked), 1)

    def score(found: list[str]) -> float:
        return 100 * mean(answers.f1(q.texts[0], text) for q, text in zip(held, found, strict=True))

    def overlap(question: Question, least: float) -> str:
        best = max(names(question), key=lambda name: shared(question, name), default=None)
        return best[0] if best and shared(question, best) >= least else ""

    def trained(least: float) -> float:
        return mean(answers.f1(q.texts[0], overlap(q, least)) for q in train)

    least = max((step / 20 for step in range(20)), key=trained)
    yield "no answer", score([""] * len(held))
    yield "the first name that the question does not have", score([(names(q) or [[""]])[0][0] for q in held])
    yield "the name whose neighbours are in the question", score([overlap(q, least) for q in held])


def choose(data: Path, split: str) -> Iterator[tuple[str, float]]:
    """Similarity of words to the context, and counts of the words at the join."""
    held = read_choices(data / f"choose-{split}.jsonl")
    corpus = [json.loads(line)["text"] for line in (data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    raw = [json.loads(line) for line in (data / f"choose-{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    words = TfidfVectorizer().fit(corpus)

    def accuracy(scores: list[np.ndarray]) -> float:
        return mean(int(of.argmax()) == question.answer for of, question in zip(scores, held, strict=True))

    def similarity(question: MultipleChoice, begun: str, ends: list[str]) -> np.ndarray:
        context = words.transform([f"{question.context} {begun}"])
        return (words.transform(ends) @ context.T).toarray()[:, 0]

    yield "chance", 1 / len(held[0].choices)
    similar = [similarity(q, r["question"], r["choices"]) for q, r in zip(held, raw, strict=True)]
    yield "words shared with the context (TF-IDF)", accuracy(similar)
    pairs, singles = Counter[tuple[str, str]](), Counter[str]()
    for text in corpus:
        found = text.lower().split()
        singles.update(found)
        pairs.update(itertools.pairwise(found))

    def joined(begun: str, end: str) -> float:
        left, right = begun.lower().split()[-1], end.lower().split()[0]
        return (pairs[left, right] + 0.1) / (singles[right] + 10)

    joins = [np.array([joined(r["question"], end) for end in r["choices"]]) for r in raw]
    yield "counts of the pair of words at the join", accuracy(joins)


def regress(data: Path, split: str) -> Iterator[tuple[str, float]]:
    """Bags of words, which do not see order, and shared pairs of words."""
    train, held = (read_table(data / f"regress-{name}.csv") for name in ("train", split))
    truth = np.array(held.column("label"), float)
    bags = make_pipeline(TfidfVectorizer(), Ridge())
    bags.fit([" ".join(row) for row in train.columns_of(["first", "second"])], np.array(train.column("label"), float))
    both = list(held.columns_of(["first", "second"]))
    yield (
        "bag of words (TF-IDF, ridge regression)",
        pearsonr(truth, bags.predict([" ".join(row) for row in both])).statistic,
    )

    def pairs(text: str) -> set[tuple[str, str]]:
        return set(zip(text.split(), text.split()[1:], strict=False))

    shared = [len(pairs(a) & pairs(b)) / len(pairs(a) | pairs(b)) for a, b in both]
    yield "shared pairs of neighbouring words", pearsonr(truth, shared).statistic


if __name__ == "__main__":
    main()
