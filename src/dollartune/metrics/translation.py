"""BLEU and chrF over a whole test set, with sacrebleu's tokenization and definitions."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dollartune.metrics.base import Metric, MetricKind, Statistics, Takes, require_pairs, texts_of

if TYPE_CHECKING:
    from dollartune.metrics.base import FloatArray

# The papers' and sacrebleu's defaults; other orders could not be compared with published scores.
BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2.0


class CorpusMetric(Metric):
    """A measure of a whole set of texts; sentence scores do not average to it."""

    kind: ClassVar[MetricKind] = "generation"
    takes: ClassVar[Takes] = "texts"

    @abstractmethod
    def statistics(self, predictions: Sequence[str | None], references: Sequence[str | Sequence[str]]) -> Statistics:
        """Additive counts per example."""

    def score(self, predictions: Sequence[str | None], references: Sequence[str | Sequence[str]]) -> float:
        """The measure over all examples, in [0, 1] (the usual figure is 100 times that)."""
        statistics = self.statistics(predictions, references)
        return float(statistics.score(statistics.values.sum(axis=0)))


class Bleu(CorpusMetric):
    """BLEU-4: brevity penalty times the geometric mean of clipped n-gram precisions, 13a tokens, exponential smoothing.

    BLEU = min(1, exp(1 - R / S)) * exp(1/4 sum_n log(correct_n / total_n)), with S the length of the texts and R that
    of the references closest in length.

    Source: Papineni et al. (2002); Post (2018), A Call for Clarity in Reporting BLEU Scores. The counts come from
    sacrebleu sentence by sentence, so that a bootstrap can sum them; the sum gives sacrebleu's corpus score.
    """

    name = "bleu"

    def statistics(self, predictions: Sequence[str | None], references: Sequence[str | Sequence[str]]) -> Statistics:
        """Columns: correct and total n-grams of order 1 to 4, length of the text, length of the closest reference."""
        import numpy
        from sacrebleu.metrics import BLEU

        require_pairs(self.name, predictions, references)
        sentence = BLEU(effective_order=True)  # changes the sentence's own score only, and silences a warning about it
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            counted = sentence.sentence_score(prediction or "", list(texts_of(reference)))
            # 4 + 4 + 2 columns, in the order in which `_bleu` reads them.
            rows.append([*counted.counts, *counted.totals, counted.sys_len, counted.ref_len])
        return Statistics(numpy.array(rows, dtype=float), self.score_of_sums)

    def score_of_sums(self, sums: FloatArray) -> FloatArray:
        return _bleu(sums)


class Chrf(CorpusMetric):
    """chrF2: F-measure of character n-grams, orders 1 to 6, white space left out, recall weighted beta = 2.

    P and R are averaged over the orders that both sides have; chrF = (1 + beta^2) P R / (beta^2 P + R). With several
    references, the one with the best sentence chrF counts.

    Source: Popovic (2015), chrF: character n-gram F-score for automatic MT evaluation; settings of sacrebleu.
    """

    name = "chrf"

    def statistics(self, predictions: Sequence[str | None], references: Sequence[str | Sequence[str]]) -> Statistics:
        """Columns: for each order, n-grams of the text, of the reference, and shared."""
        import numpy

        require_pairs(self.name, predictions, references)
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            mine = _character_ngrams(prediction or "")
            counts = [_shared(mine, _character_ngrams(text)) for text in texts_of(reference)]
            scores = _chrf(numpy.array(counts, dtype=float))
            # One reference's counts per text, chosen here: sums over different references would fit none.
            rows.append(counts[int(scores.argmax())])
        return Statistics(numpy.array(rows, dtype=float), self.score_of_sums)

    def score_of_sums(self, sums: FloatArray) -> FloatArray:
        return _chrf(sums)


def _bleu(sums: FloatArray) -> FloatArray:
    """From summed counts `(..., 10)` to BLEU `(...)`."""
    import numpy

    correct, total = sums[..., :BLEU_ORDER], sums[..., BLEU_ORDER : 2 * BLEU_ORDER]
    text, reference = sums[..., -2], sums[..., -1]
    # Exponential smoothing: the k-th order without a match counts as 2^-k matches.
    # sacrebleu's `exp` smoothing, its default; corpora of a few texts often have no match of four words.
    halvings = numpy.cumsum(correct == 0, axis=-1)
    matches = numpy.where(correct == 0, 0.5**halvings, correct)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        logarithms = numpy.log(matches / total)
        brevity = numpy.where(text < reference, numpy.exp(1 - reference / text), 1.0)
        score = brevity * numpy.exp(logarithms.mean(axis=-1))
    # Without any match, or texts shorter than four words: 0, as in sacrebleu, whatever smoothing says.
    scored: FloatArray = numpy.where((correct.sum(axis=-1) > 0) & (total.min(axis=-1) > 0), score, 0.0)
    return scored


def _chrf(sums: FloatArray) -> FloatArray:
    """From summed counts `(..., 3 * 6)` to chrF `(...)`."""
    import numpy

    counts = sums.reshape(*sums.shape[:-1], CHRF_ORDER, 3)
    mine, theirs, shared = counts[..., 0], counts[..., 1], counts[..., 2]
    # Short texts have no n-grams of the higher orders, which then do not count as misses.
    both = (mine > 0) & (theirs > 0)
    orders = numpy.maximum(both.sum(axis=-1), 1)
    precision = numpy.divide(shared, mine, out=numpy.zeros_like(mine), where=both).sum(axis=-1) / orders
    recall = numpy.divide(shared, theirs, out=numpy.zeros_like(mine), where=both).sum(axis=-1) / orders
    weighted = CHRF_BETA**2 * precision + recall
    score: FloatArray = numpy.divide(
        (1 + CHRF_BETA**2) * precision * recall, weighted, out=numpy.zeros_like(weighted), where=weighted > 0
    )
    return score


def _character_ngrams(text: str) -> list[Counter[str]]:
    # Without white space, as in the paper: languages without spaces between words are measured alike.
    plain = "".join(text.split())
    return [
        Counter(plain[start : start + order] for start in range(len(plain) - order + 1))
        for order in range(1, CHRF_ORDER + 1)
    ]


def _shared(mine: list[Counter[str]], theirs: list[Counter[str]]) -> list[int]:
    """Per order: n-grams of the text, of the reference, shared. As in sacrebleu, an order that the reference is too
    short for counts on neither side."""
    counts: list[int] = []
    for one, other in zip(mine, theirs, strict=True):
        counts += [one.total() if other else 0, other.total(), (one & other).total()]
    return counts
