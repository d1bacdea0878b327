"""Prompts with solved examples, and the correction for what a prompt makes likely by itself."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, Task, Template

if TYPE_CHECKING:
    from dollartune.methods.base import Prompting
    from dollartune.train.encoding import Encoded, Encoder


def few_shot_encoded(
    encoder: Encoder,
    task: Task,
    examples: Sequence[Example],
    pool: Sequence[Example],
    prompting: Prompting,
    template: Template | None,
    seed: int,
) -> list[Encoded]:
    """Encodes questions with k solved examples before each; examples that do not fit are left out from the front."""
    chooser = _Chooser(task, pool, prompting, seed)
    plain = encoder.encode(task, examples, template)
    encoded = []
    for example, question in zip(examples, plain, strict=True):
        # training rows are asked for calibration: none of them sees its own answer
        solved = [shot for shot in chooser.choose(example) if shot.id != example.id]
        # The answer must fit behind the prompt, and one token that ends it.
        room = encoder.max_length - len(question.answer) - 1
        while True:
            ids = encoder.question_ids(task, example, template, solved, prompting.separator)
            if len(ids) <= room or not solved:
                break
            # From the front: the examples next to the question matter most.
            solved.pop(0)
        encoded.append(replace(question, prompt=ids if solved else question.prompt))
    return encoded


class _Chooser:
    """Picks the solved examples for a question."""

    def __init__(self, task: Task, pool: Sequence[Example], prompting: Prompting, seed: int) -> None:
        self.task, self.pool, self.prompting = task, list(pool), prompting
        # A generator of its own: draws of training rows with the same seed stay as they are, whatever is prompted.
        rng = random.Random(f"few-shot/{seed}")
        if prompting.choose == "similar":
            self.vectorizer, self.matrix = self._index()
            return
        if prompting.choose == "random" or task.kind != "classification":
            self.fixed = rng.sample(self.pool, min(prompting.examples, len(self.pool)))
            return
        by_label: dict[str | None, list[Example]] = defaultdict(list)
        for example in self.pool:
            by_label[example.label].append(example)
        for group in by_label.values():
            rng.shuffle(group)
        # Label by label in turn, so that few examples are balanced; sorted, so that the order of rows in the file does not
        # matter.
        turns = [group for _, group in sorted(by_label.items(), key=lambda item: str(item[0]))]
        chosen: list[Example] = []
        while len(chosen) < prompting.examples and any(turns):
            for group in turns:
                if group and len(chosen) < prompting.examples:
                    chosen.append(group.pop())
        # Shuffled at the end: with the labels in a fixed cycle a model continues the cycle instead of reading the question.
        rng.shuffle(chosen)
        self.fixed = chosen

    def choose(self, example: Example) -> list[Example]:
        """The most similar last, next to the question."""
        if self.prompting.choose != "similar":
            return self.fixed
        scores = (self.matrix @ self.vectorizer.transform([self._text(example)]).T).toarray()[:, 0]
        # Stable, so that equal scores choose the same examples on every processor.
        best = scores.argsort(kind="stable")[-self.prompting.examples :]
        return [self.pool[i] for i in best]

    def _index(self) -> tuple[Any, Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # The 50,000 most frequent words bound the memory of a large pool; rarer ones seldom decide which text is nearest.
        vectorizer = TfidfVectorizer(max_features=50_000)
        return vectorizer, vectorizer.fit_transform([self._text(e) for e in self.pool])

    def _text(self, example: Example) -> str:
        return " ".join(str(v) for v in example.fields.values() if isinstance(v, str))


def content_free(task: Task, template: Template | None) -> list[Example]:
    """Questions without content: their label probabilities are what the prompt alone makes likely (Zhao et al. 2021)."""
    columns = (template or task.template).columns if (template or task.template) else ()  # type: ignore[union-attr]
    label = task.labels[0] if task.labels else None
    return [
        Example(f"empty/{i}", dict.fromkeys(columns, word), label, "") for i, word in enumerate(("N/A", "[MASK]", ""))
    ]
