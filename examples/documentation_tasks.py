"""Make the data of docs/finetune.md: four tasks made from Django's documentation, and the text to pretrain on.

    python examples/documentation_tasks.py        # makes documentation/

The documentation (BSD licence) is part of Django's source distribution, which pip downloads from the package index (or
pass --sdist FILE). Its markup is removed; the roles in it, such as :class:`~django.db.models.Model`, become the named
entities of the tasks. A tenth of its files is for validation and two tenths for the test: they are neither in the
training files nor in the text to pretrain on.

tag       A sentence with at least one entity. The words of an entity are B-KIND, I-KIND ...; the others are O.
answer    A sentence with an entity replaced by `_`. The context is the rest of its paragraph and of the two beside it,
          with at least two names of entities. If it has that of the question, the first place is the answer; if not,
          there is none, which is so for a third of the questions.
choose    The sentence before, the first half of a sentence, and four second halves: its own, and those of three other
          sentences of the same file.
regress   A sentence, and the same words in another order; the target is 5 less 10 times the share of the pairs of
          words that have changed their order, and at least 0.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
KINDS = {
    "class": "class",
    "exc": "class",
    "func": "function",
    "meth": "method",
    "attr": "attribute",
    "setting": "setting",
    "mod": "module",
}
"""Kind of an entity by its role; other roles are plain text."""
MOST = {"train": 1200, "valid": 300, "test": 1000}
"""Examples of each task per split."""
MARKUP = re.compile(
    r":(?P<role>[a-z:]+):`(?P<body>[^`]+)`"
    r"|``(?P<literal>.+?)``|`(?P<link>[^`<]+?)(?: <[^`]*>)?`_{0,2}"
    r"|\*\*(?P<strong>[^*]+)\*\*|\*(?P<emphasis>[^*\s][^*]*)\*"
    r"|(?P<dropped> ?\[[#\w]+\]_|\\ )"
)
BULLET = re.compile(r"(?:[*-]|#\.|\d+\.) +")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.) (?=[A-Z\"'(])")
WORD = re.compile(r"\w+(?:[./-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Entity:
    """The characters [start, stop) of a sentence, and a kind."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True)
class Sentence:
    """A sentence without markup."""

    text: str
    entities: tuple[Entity, ...]

    @property
    def names(self) -> set[str]:
        """The texts of the entities."""
        return {self.text[entity.start : entity.stop] for entity in self.entities}


Document = list[list[Sentence]]
"""The paragraphs of a file."""


def main() -> None:
    """Write corpus.jsonl, and for each task train, valid and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="Django-*.tar.gz (default: download with pip)")
    parser.add_argument("--out", type=Path, default=Path("documentation"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        documents = read_documents(options.sdist or download(Path(folder)))
    random.Random(0).shuffle(documents)
    tenth = len(documents) // 10
    valid, test, train = documents[:tenth], documents[tenth : 3 * tenth], documents[3 * tenth :]
    splits = {"train": train, "valid": valid, "test": test}
    options.out.mkdir(parents=True, exist_ok=True)
    for split, held in splits.items():
        for name, lines in make_tasks(held, MOST[split]).items():
            (options.out / name.format(split)).write_text(lines, encoding="utf-8", newline="")
    texts = ["\n\n".join(" ".join(s.text for s in paragraph) for paragraph in doc) for doc in splits["train"]]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (options.out / "corpus.jsonl").write_text(lines, encoding="utf-8")
    words = sum(len(text.split()) for text in texts)
    print(f"{options.out}: {len(documents)} files; {len(texts)} of them, {words:,} words, to pretrain on")


def download(folder: Path) -> Path:
    """Download the source distribution with pip."""
    pip = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "Django==5.2"]
    subprocess.run([*pip, "--quiet", "--disable-pip-version-check", "-d", str(folder)], check=True)
    return next(path for path in folder.iterdir() if path.name.lower().startswith("django"))


def read_documents(sdist: Path) -> list[Document]:
    """The files of the documentation that have paragraphs, by name."""
    found = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            if re.fullmatch(r"[^/]+/docs/.+\.txt", member.name) and (file := archive.extractfile(member)):
                found[member.name] = list(paragraphs(file.read().decode()))
    return [found[name] for name in sorted(found) if found[name]]


def paragraphs(source: str) -> Iterator[list[Sentence]]:
    """The paragraphs of a reStructuredText file; no code, headings, tables or other blocks."""
    code: int | None = None  # indentation of the paragraph or directive that code follows
    for block in re.split(r"\n\s*\n", source.expandtabs()):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = len(lines[0]) - len(lines[0].lstrip())
        if code is not None and indent > code:
            continue
        is_code = lines[-1].rstrip().endswith("::") or re.match(r" *\.\. (code|console|snippet|literal|.*graph)", block)
        code = indent if is_code else None
        bullet = BULLET.match(lines[0].lstrip())
        body = indent + (bullet.end() if bullet else 0)
        same = all(len(line) - len(line.lstrip()) == body for line in lines[1:])
        text = " ".join(" ".join(lines).split())[bullet.end() if bullet else 0 :]
        if same and re.match(r"[A-Z`:\"]", text) and re.search(r"[.!?:]$", text) and " " in text:
            yield sentences(re.sub(r"::$", ":", text))


def sentences(marked: str) -> list[Sentence]:
    """The sentences of a paragraph with markup."""
    text, entities, done = "", list[Entity](), 0
    for found in MARKUP.finditer(marked):
        text += marked[done : found.start()]
        done, shown = found.end(), found[found.lastgroup or 0]
        if found["role"]:
            shown = shown_by(found["body"])
            if (kind := KINDS.get(found["role"].split(":")[-1])) and shown:
                entities.append(Entity(len(text), len(text) + len(shown), kind))
        text += "" if found["dropped"] else shown
    text += marked[done:]
    bounds = [0, *(found.end() for found in END_OF_SENTENCE.finditer(text)), len(text) + 1]
    return [
        Sentence(
            text[start : stop - 1].strip(),
            tuple(Entity(e.start - start, e.stop - start, e.kind) for e in entities if start <= e.start < stop),
        )
        for start, stop in itertools.pairwise(bounds)
    ]


def shown_by(body: str) -> str:
    """The text that is shown for the body of a role."""
    titled = re.fullmatch(r"(.+?)\s*<.*>", body)
    if titled:
        return titled[1].removesuffix("()")
    return (body.rsplit(".", 1)[-1] if body.startswith("~") else body.lstrip("!.")).removesuffix("()")


def make_tasks(documents: list[Document], most: int) -> dict[str, str]:
    """The contents of the files of a split, by name."""
    rng = random.Random(1)
    tagged, asked, chosen, compared = (
        pick(make(documents, rng), most, rng) for make in (make_tag, make_answer, make_choose, make_regress)
    )
    pairs = [["first", "second", "label"], *compared]
    return {
        "tag-{}.conll": "".join("\n".join(lines) + "\n\n" for lines in tagged),
        "answer-{}.json": json.dumps({"version": "v2.0", "data": [{"title": "Django", "paragraphs": asked}]}),
        "choose-{}.jsonl": "".join(json.dumps(question) + "\n" for question in chosen),
        "regress-{}.csv": "".join(csv_line(row) for row in pairs),
    }


def pick(items: Iterator[T], most: int, rng: random.Random) -> list[T]:
    """At most `most` items in random order."""
    found = list(items)
    return rng.sample(found, min(most, len(found)))


def make_tag(documents: list[Document], rng: random.Random) -> Iterator[list[str]]:
    """Sentences as lines of a word and its tag."""
    for sentence in all_sentences(documents):
        words = list(WORD.finditer(sentence.text))
        if sentence.entities and len(words) <= 60:
            yield [f"{word[0]} {tag_of(word, sentence)}" for word in words]


def tag_of(word: re.Match[str], sentence: Sentence) -> str:
    """The tag of a word: B at the start of an entity, I inside, O outside."""
    for entity in sentence.entities:
        if entity.start <= word.start() < entity.stop:
            return f"{'B' if word.start() == entity.start else 'I'}-{entity.kind}"
    return "O"


def make_answer(documents: list[Document], rng: random.Random) -> Iterator[dict[str, object]]:
    """Paragraphs of SQuAD's format with a question each; twice as many with an answer as without."""
    answered, unanswered = [], []
    for sentence, around in with_surroundings(documents):
        context, candidates = " ".join(s.text for s in around), {name for s in around for name in s.names}
        if not 5 <= len(sentence.text.split()) <= 30 or len(context.split()) > 90 or len(candidates) < 2:
            continue
        for name in sorted(sentence.names):
            place = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w(]|\.\w)")
            found, question = place.search(context), place.sub("_", sentence.text)
            answers = [{"text": name, "answer_start": found.start()}] if found else []
            (answered if found else unanswered).append((context, question, answers))
    kept = rng.sample(unanswered, min(len(unanswered), len(answered) // 2))
    for number, (context, question, answers) in enumerate([*answered, *kept]):
        asked = {"id": str(number), "question": question, "answers": answers, "is_impossible": not answers}
        yield {"context": context, "qas": [asked]}


def with_surroundings(documents: list[Document]) -> Iterator[tuple[Sentence, list[Sentence]]]:
    """Each sentence, and the others of its paragraph and of the paragraphs beside it."""
    for document in documents:
        for at, paragraph in enumerate(document):
            before, after = document[max(at - 1, 0) : at], document[at + 1 : at + 2]
            for number, sentence in enumerate(paragraph):
                beside = [*before, paragraph[:number], paragraph[number + 1 :], *after]
                yield sentence, [s for part in beside for s in part]


def make_choose(documents: list[Document], rng: random.Random) -> Iterator[dict[str, object]]:
    """Sentences to be continued, with four second halves."""
    for document in documents:
        pairs = [(before, after) for paragraph in document for before, after in itertools.pairwise(paragraph)]
        halves = [(before.text, *halve(after.text)) for before, after in pairs if 12 <= len(after.text.split()) <= 40]
        for before, begun, own in halves:
            ends = sorted({end for _, _, end in halves} - {own})
            if len(ends) >= 3:
                choices = [own, *rng.sample(ends, 3)]
                rng.shuffle(choices)
                yield {"context": before, "question": begun, "choices": choices, "label": choices.index(own)}


def halve(text: str) -> tuple[str, str]:
    """The two halves of a sentence, by words."""
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def make_regress(documents: list[Document], rng: random.Random) -> Iterator[list[str]]:
    """Pairs of a sentence and its words in another order, with a similarity from 0 to 5."""
    for sentence in all_sentences(documents):
        words = sentence.text.split()
        if 8 <= len(words) <= 30:
            reach = rng.random() * len(words)
            moved = [place + rng.random() * reach for place in range(len(words))]
            order = sorted(range(len(words)), key=moved.__getitem__)
            pairs = [left < right for at, left in enumerate(order) for right in order[at + 1 :]]
            similarity = max(0.0, 5 - 10 * pairs.count(False) / len(pairs))
            yield [sentence.text, " ".join(words[place] for place in order), f"{similarity:.2f}"]


def all_sentences(documents: list[Document]) -> Iterator[Sentence]:
    """Each sentence once."""
    seen = set[str]()
    for sentence in (sentence for document in documents for paragraph in document for sentence in paragraph):
        if sentence.text not in seen:
            seen.add(sentence.text)
            yield sentence


def csv_line(row: list[str]) -> str:
    """A row as a line of CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(row)
    return file.getvalue()


if __name__ == "__main__":
    main()
