"""tf-idf: logistic regression on weighted counts of words and pairs of words.

text ──> words and pairs ──> (1 + log count) · idf, length 1 ──> W, b ──> scores (classes,)
                             (features,)                         solved, C by cross-validation
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dollartune.methods.base import Capabilities, Method, Settings
from dollartune.methods.baseline import Answerer, ClassShares, LabelledTexts
from dollartune.methods.logistic import choose_C

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

Array = NDArray[np.float64]

PATH = tuple(10.0 ** (half / 2) for half in range(-2, 7))
"""C from strong to weak regularization, two to a decade. Rows of length 1 need weaker regularization than standardized
features do."""
FOLD_ROWS = 1_000
"""C is chosen on at most so many rows. It is solved there in the rows' products instead of in a hundred thousand features, which
takes a second or two; with ten times the rows the best C moves by a step or two, and accuracy with it by less than a point."""
MOST_STEPS = 100
"""L-BFGS steps. With a large C and classes that can be separated the optimum is far away, and the answers no longer change on
the way there."""
FOLD_COPIES = 6
"""Matrices of (rows, rows) that choosing C holds at the same time: the products, their factor, parts of it in the folds."""
SOLVER_VECTORS = 25
"""Vectors of the size of the weights that L-BFGS holds: ten pairs of steps and gradients, and what it works with."""
CHARACTER_BYTES = 60
"""For each character of the rows, while words and pairs are counted."""
FEATURE_CHARACTERS = 8
"""A word or pair that no earlier row had comes after at least so many characters: 12 on SST-2, 14 on AG News (1,400 rows)."""
LIBRARY_BYTES = 155_000_000
"""That importing scikit-learn, scipy included, adds to a process."""
RIDGE = 1e-8
"""Added to the products of each row with itself (1): rows that occur twice would else have no Cholesky factor."""
TOKEN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
"""A word; in scripts that do not separate words each character is one, and pairs of them are what carries meaning."""


class TfidfConfig(Settings):
    """A linear classifier on counts of words. It has no learning rate: nothing is stepped."""

    C: float | None = Field(None, gt=0.0)
    """Inverse strength of the regularization, as in scikit-learn; by default chosen by cross-validation on the training
    rows."""
    folds: int = Field(5, ge=2)
    """Folds of the cross-validation, stratified by class."""
    pairs: bool = True
    """Count pairs of neighbouring words beside single words."""
    features: int = Field(100_000, ge=1)
    """Most words and pairs, the commonest ones: a rarer one occurs in a row or two and decides no other."""


class Tfidf(Method[TfidfConfig]):
    """scores = W x + b, where x_t = (1 + log count_t) · (1 + log((1 + N) / (1 + N_t))), scaled to length 1.

    t runs over words and pairs of words in lower case, N is the number of training rows, N_t those with t in them. W and b
    minimize Σ −log softmax(scores)[label] + ‖W‖² / (2 C). The columns that the prompt names are read, not its own words. The
    weights N_t are counted on all training rows, once, before rows are held out to choose C: they hold no labels.

    Source: scikit-learn's `TfidfVectorizer(sublinear_tf=True)` and `LogisticRegression`; Wang and Manning 2012 on pairs of
    words as a baseline.
    """

    name = "tfidf"
    aliases = ("tf_idf", "bag_of_words")
    branch = "baseline"
    Config = TfidfConfig
    capabilities = Capabilities(trains=False, baseline=True, seeded=False, modalities=("text",))
    reference = "words"

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        return ()

    def import_libraries(self) -> None:
        for name in ("sklearn.feature_extraction.text", "sklearn.linear_model"):
            import_module(name)

    def fit_bytes(self, rows: LabelledTexts) -> int:
        characters = sum(len(text) for text in rows.texts)
        features = min(self.config.features, characters * (2 if self.config.pairs else 1) // FEATURE_CHARACTERS)
        outputs = rows.classes if rows.classes > 2 else 1  # of two, one is enough
        products = FOLD_COPIES * 8 * min(len(rows.texts), FOLD_ROWS) ** 2 if self.config.C is None else 0
        libraries = 0 if "sklearn.linear_model" in sys.modules else LIBRARY_BYTES
        return libraries + CHARACTER_BYTES * characters + max(products, SOLVER_VECTORS * 8 * features * outputs)

    def fit(self, rows: LabelledTexts) -> Answerer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors = TfidfVectorizer(
            ngram_range=(1, 2 if self.config.pairs else 1), sublinear_tf=True, token_pattern=TOKEN,
            max_features=self.config.features,
        )  # fmt: skip
        try:
            counted = vectors.fit_transform(rows.texts)
        except ValueError:  # scikit-learn's word for: no row has a word in it
            return ClassShares.of(rows)
        # scikit-learn refuses one class, which a hundred rows may well have.
        if len(np.unique(rows.labels)) < 2:
            return ClassShares.of(rows)
        C: float | None = self.config.C
        held_out: dict[str, float] = {}
        if C is None:
            C, held_out = _choose_C(counted, rows, self.config.folds)
        solved = _solve(counted, rows.labels, C)
        return Words(vectors, solved, rows.classes, {"C": C, "features": float(counted.shape[1]), **held_out})


@dataclass(frozen=True)
class Words:
    """A fitted classifier."""

    vectors: Any
    """scikit-learn's vectorizer."""
    solved: Any
    """scikit-learn's regression, of the classes that have a row."""
    classes: int
    reported: Mapping[str, float]

    @property
    def parameters(self) -> int:
        return int(self.solved.coef_.size + self.solved.intercept_.size)

    def log_probabilities(self, texts: Sequence[str]) -> Array:
        # A class without a training row gets probability 0, as nothing is known of it.
        answers = np.full((len(texts), self.classes), -np.inf)
        answers[:, self.solved.classes_] = self.solved.predict_log_proba(self.vectors.transform(texts))
        return answers


def _solve(counted: Any, labels: NDArray[np.int64], C: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # see MOST_STEPS
        return LogisticRegression(C=C, max_iter=MOST_STEPS).fit(counted, labels)


def _choose_C(counted: Any, rows: LabelledTexts, folds: int) -> tuple[float, dict[str, float]]:
    """C, and what was held out while it was chosen.

    The penalty does not change when features are rotated, so any F with F Fᵀ = X Xᵀ has the same optima as the counts X
    (rows, features): here the Cholesky factor, (rows, rows).
    """
    chosen = np.random.default_rng(rows.seed).permutation(len(rows.labels))[:FOLD_ROWS]
    counted, labels = counted[chosen], rows.labels[chosen]
    products = (counted @ counted.T).toarray()  # (rows, rows)
    products[np.diag_indices_from(products)] += RIDGE
    factor = np.linalg.cholesky(products)
    tried = choose_C(factor, labels, rows.classes, np.ones(len(labels)), folds, rows.seed, PATH)
    if not tried.losses:  # one row of each class: nothing could be held out
        return PATH[len(PATH) // 2], {}  # the middle, as nothing speaks for either end
    return tried.C, {"held_out_log_loss": tried.losses[tried.C], "held_out_accuracy": tried.accuracy}
