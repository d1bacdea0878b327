"""tf-idf probe: logistic regression on features of the frozen backbone and on weighted counts of tokens, solved together.

tokens ─┬─> frozen backbone ──> pooled h, last and middle layer ──> (h − μ) / σ ─┬─> W h + V x + b ──> scores (classes,)
        └─> tokens and pairs ──> tf-idf x (n-grams,), length 1, times √3 ────────┘     solved, C by cross-validation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dollartune.errors import UserError
from dollartune.methods.edits import Readout
from dollartune.methods.features import DEEP, LabelledFeatures, state_width
from dollartune.methods.linear_probe import ONE_THREAD_NUMBERS
from dollartune.methods.logistic import LogisticProblem, choose_C
from dollartune.methods.solved import SolvedMethod, SolvedSettings
from dollartune.methods.token_counts import NGrams

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import Anatomy, Site

Array = NDArray[np.float64]

WORDS = 3.0
"""Squared length of a row's counts where each pooled part of its features has 1 on average. Of 0, 0.3, 1, 3 and 10 it had the
lowest held-out log loss, or one within 0.003 of it, on SST-2, AG News, PhraseBank, CoLA and RTE (1,400 rows, MiniLM)."""
PATH = tuple(10.0 ** (half / 2) for half in range(-3, 6))
"""C from strong to weak regularization, two to a decade; with rows of about length 1 the best was between 0.1 and 30."""
SQUARES = 10
"""Matrices of (rows, rows) that are in memory at the same time, at most: 290 MB were seen at 1,900 rows."""
SOLVED_IN_ROWS = 2_000
"""Up to so many rows the problem is solved in the rows' products, where the n-grams' number does not count: a second or two.
With more, C is chosen on so many of them, and solved in the features."""
CHOSEN_IN_NUMBERS = 8_000_000
"""C is chosen on so many rows that their products times the classes are no more numbers: all of 1,400 rows of four classes, 630
of twenty. On 1,015 rows of twenty classes choosing it took 10 s, and the first adapter of a short budget waits for it."""
ROWS_OF_A_CLASS = 3
"""But on so many times the classes at least."""
CLOSE = 1e-6
"""Largest gradient of the mean loss at the solution, as `logistic.EXACT`, which takes twice the steps: counts of words have many
small directions, and no probability moves by 1e-4 on the way."""
CHOOSING_STEPS, SOLVING_STEPS = 35, 200
"""L-BFGS steps for each C that is tried and for the solution, as seen on texts; logistic.operations knows those of features."""
MOST_STEPS, NEAR, KEPT_STEPS = 200, 3e-4, 4
"""L-BFGS steps, the largest gradient as above, and the steps that are kept to guess the curvature, where it is solved in the
features: there are a hundred thousand n-grams for each class, and going through ten steps of them takes longer than the rows."""
FEATURE_STEPS = 60
"""Of them, as seen."""
COUNTED_OPERATIONS, NGRAM_OPERATIONS = 1500, 700
"""What the counts of a row cost in a step, in numbers of its features (a hundred n-grams, far apart in memory), and what each
n-gram costs beside them: L-BFGS goes through all of them some twenty times."""
ABSENT = 10.0
"""A class without a training row has a bias so much below the least of the others."""


class TfidfProbeConfig(SolvedSettings):
    """A linear classifier on frozen features and counted tokens. It has no learning rate: nothing is stepped."""

    pooling: str = DEEP
    """How a row's states become one vector: see `linear_probe`; `none` leaves the backbone out, and tokens alone decide."""
    first_tokens: int | None = Field(None, ge=1)
    """Only the first so many tokens of a row go through the backbone; all are counted. For long texts and little money."""
    rows_share: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the training rows that it is solved on, spread over all of them: features of more would take too long."""
    C: float | None = Field(None, gt=0.0)
    """Inverse strength of the regularization; by default chosen by cross-validation on the training rows."""
    folds: int = Field(5, ge=2)
    """Folds of the cross-validation, stratified by class."""
    class_weight: Literal["none", "balanced"] = "none"
    """`balanced` weighs each row by rows / (classes · rows of its class), for classes that are rare."""
    ngrams: int = Field(100_000, ge=1)
    """Most tokens and pairs that are counted, the commonest ones."""


class TfidfProbe(SolvedMethod[TfidfProbeConfig]):
    """scores = W (h − μ) / σ + V x + b, where W, V and b minimize Σ −log softmax(scores)[label] + (‖W‖² + ‖V‖² / 3) / (2 C).

    h (width,) is pooled from states of the frozen backbone; μ is its mean over the training rows and σ one number for each
    pooled part, so that the part has length 1 on average. x (n-grams,) are weighted counts of tokens and pairs. Counts know
    words that pretraining did not care for, features know what words mean: together they were better than the better of the
    two on each set tried. Trainable: classes · (width + 1), and V, whose n-grams are those of the training rows.

    Source: the two parts are `linear_probe` and `tfidf`; that both together beat each is the finding of Wang and Manning 2012
    ("Baselines and Bigrams") and of feature unions since.
    """

    name = "tfidf_probe"
    aliases = ("probe_with_words", "tf_idf_probe")
    Config = TfidfProbeConfig

    def check(self, anatomy: Anatomy) -> None:
        super().check(anatomy)
        if anatomy.kind == "vision":
            raise UserError(f"{self.name}: images have no tokens to count.", hint="linear_probe: {pooling: deep}")

    def pools(self, anatomy: Anatomy) -> tuple[str, ...]:
        return () if self.config.pooling == "none" else super().pools(anatomy)

    def shared(self, sites: Sequence[Site], anatomy: Anatomy) -> nn.Module | None:
        readout = WordsAndFeatures(self.pools(anatomy), state_width(sites[0], anatomy), sites[0].out_features)
        readout.most_tokens = self.config.first_tokens
        readout.rows_share = self.config.rows_share
        return readout

    def count_shared(self, sites: Sequence[Site], anatomy: Anatomy) -> int:
        return sites[0].out_features * (state_width(sites[0], anatomy) * len(self.pools(anatomy)) + 1)

    @torch.no_grad()
    def solve(self, part: nn.Module, rows: LabelledFeatures) -> None:
        readout = next(module for module in part.modules() if isinstance(module, WordsAndFeatures))
        # solved again with some rows more, C stays: it would move by a step of the path at most, and choosing takes longest
        C = self.config.C if self.config.C is not None else self.solution.get("C")
        products = min(len(rows.labels), SOLVED_IN_ROWS) ** 2 * rows.classes
        with threadpool_limits(1 if max(rows.features.numel(), products) < ONE_THREAD_NUMBERS else None):
            self.solution |= solve_both(readout, rows, self.config.model_copy(update={"C": C}))

    def solve_operations(self, rows: int, width: int, classes: int) -> float:
        in_rows, chooses = rows <= SOLVED_IN_ROWS, self.config.C is None
        tried = min(rows, SOLVED_IN_ROWS, rows_to_choose_in(classes))
        total = 25.0 * (rows**3 if in_rows else width**3)
        if chooses:
            total += 4.0 * classes * tried**2 * min(self.config.folds, rows) * len(PATH) * CHOOSING_STEPS
            total += 25.0 * tried**3 if tried < rows else 0.0
        if in_rows:
            return total + 4.0 * classes * rows**2 * SOLVING_STEPS
        each = rows * (width + COUNTED_OPERATIONS) + NGRAM_OPERATIONS * self.config.ngrams
        return total + 4.0 * classes * each * FEATURE_STEPS

    def solve_bytes(self, rows: int, width: int, classes: int) -> int:
        # Products of each two rows, dense and sparse, their eigenvectors and what finding these takes.
        return super().solve_bytes(rows, width, classes) + SQUARES * 8 * min(rows, SOLVED_IN_ROWS) ** 2


class WordsAndFeatures(Readout):
    """W ((h − μ) / σ) + V x + b."""

    keys: Tensor
    """(n-grams,) int64; see `token_counts.NGrams`."""
    idf: Tensor
    """(n-grams,)."""
    words: nn.Parameter
    """V (classes, n-grams); without n-grams until it is solved."""
    counts_tokens = True

    def __init__(self, pooling: tuple[str, ...], d_model: int, classes: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.unmergeable = "it counts tokens, which no head of the backbone does"
        width = d_model * len(pooling)
        self.mean = nn.Buffer(torch.zeros(width))  # μ
        self.scale = nn.Buffer(torch.ones(width))  # σ
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.long))
        self.register_buffer("idf", torch.zeros(0))
        self.words = nn.Parameter(torch.zeros(classes, 0))

    def fit(self, tensors: dict[str, Tensor]) -> None:
        for name in ("keys", "idf", "words"):
            # of the same shape they stay the objects that they are
            if name in tensors and tensors[name].shape != getattr(self, name).shape:
                empty = torch.zeros_like(tensors[name], device=self.mean.device)
                setattr(self, name, nn.Parameter(empty) if name == "words" else empty)

    def linear(self) -> dict[str, Tensor]:
        weight = self.weight.detach() / self.scale  # the standardization moved into W and b
        bias = self.bias.detach() - weight @ self.mean
        return {"weight": weight, "bias": bias, "keys": self.keys, "idf": self.idf, "words": self.words.detach()}

    def scores(self, features: Tensor, tokens: Sequence[Sequence[int]] | None = None) -> Tensor:
        scores = (features - self.mean) / self.scale @ self.weight.mT + self.bias
        if tokens is None or not len(self.keys):
            return scores
        ngrams = NGrams(self.keys.cpu().numpy(), self.idf.double().cpu().numpy())
        counted = ngrams.counted(tokens)
        value = torch.from_numpy(counted.value).to(scores)
        added = self.words[:, torch.from_numpy(counted.ngram).to(scores.device)].mT * value[:, None]
        return scores.index_add(0, torch.from_numpy(counted.row).to(scores.device), added.to(scores.dtype))


@dataclass(frozen=True)
class _BothViews:
    """Both views of the training rows."""

    features: Array
    """(rows, width), (h − μ) / σ."""
    counts: Any
    """(rows, n-grams), scipy's csr."""

    def products(self, chosen: NDArray[np.int64]) -> Array:
        """Of each two of the chosen rows, (chosen, chosen)."""
        features, counts = self.features[chosen], self.counts[chosen]
        both: Array = features @ features.T + WORDS * (counts @ counts.T).toarray()
        return both


def solve_both(readout: WordsAndFeatures, rows: LabelledFeatures, config: TfidfProbeConfig) -> dict[str, float]:
    """Fills a readout; returns what there is to say of the solution."""
    from scipy.sparse import csr_matrix

    features, labels = rows.features.double().numpy(), rows.labels.numpy()
    mean, scale = features.mean(0), _part_lengths(features, len(readout.pooling))
    tokens = rows.tokens if rows.tokens is not None else [()] * len(labels)
    ngrams = NGrams.of(tokens, config.ngrams)
    counted = ngrams.counted(tokens)
    counts = csr_matrix((counted.value, (counted.row, counted.ngram)), shape=(len(labels), len(ngrams.keys)))
    both = _BothViews((features - mean) / scale, counts)
    weights = _row_weights(labels, rows.classes, config.class_weight)
    in_rows = len(labels) <= SOLVED_IN_ROWS
    basis, spread = _eigenbasis(both.products(np.arange(len(labels)))) if in_rows else (None, None)
    C, held_out = config.C, dict[str, float]()
    if C is None:
        chosen = _some(len(labels), min(SOLVED_IN_ROWS, rows_to_choose_in(rows.classes)), rows.seed)
        if basis is not None and spread is not None and len(chosen) == len(labels):
            features = basis * spread
        else:
            features = np.multiply(*_eigenbasis(both.products(chosen)))
        tried = choose_C(
            features,
            labels[chosen],
            rows.classes,
            weights[chosen],
            config.folds,
            rows.seed,
            PATH,
            orthogonal=True,
        )
        C = tried.C
        if tried.losses:
            held_out = {"held_out_log_loss": tried.losses[C], "held_out_accuracy": tried.accuracy}
    if basis is not None and spread is not None:
        problem = LogisticProblem(basis * spread, labels, rows.classes, weights[None], orthogonal=True)
        (solution,) = problem.solve(C, CLOSE)
        # scores = K U / λ^½ · β for the products K: the rows' coefficients, then those of what the products are made of
        dual = (basis / spread) @ solution.weight.T  # (rows, classes)
        weight, words, bias = dual.T @ both.features, WORDS * (counts.T @ dual).T, solution.bias
    else:
        weight, words, bias = _in_features(both, labels, rows.classes, weights, C)
    for tensor, value in (
        (readout.mean, mean), (readout.scale, scale), (readout.weight, weight), (readout.bias, bias)
    ):  # fmt: skip
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    device = readout.mean.device
    readout.keys = torch.from_numpy(ngrams.keys).to(device)
    readout.idf = torch.from_numpy(ngrams.idf).float().to(device)
    readout.words = nn.Parameter(torch.from_numpy(np.ascontiguousarray(words)).float().to(device))
    return {"C": C, "ngrams": float(len(ngrams.keys)), **held_out}


def _part_lengths(features: Array, parts: int) -> Array:
    """(width,): of each pooled part the root of its mean squared length about its mean; 1 where it is constant."""
    scale = np.ones(features.shape[1])
    for part in np.split(np.arange(features.shape[1]), parts) if parts else ():
        length = float(np.sqrt(features[:, part].var(0).sum()))
        scale[part] = length if length > 0 else 1.0
    return scale


def _row_weights(labels: NDArray[np.int64], classes: int, class_weight: str) -> Array:
    if class_weight == "none":
        return np.ones(len(labels))
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels]


def rows_to_choose_in(classes: int) -> int:
    """Most rows that C is chosen on; some of each class, as a class's only row is never held out."""
    return max(int((CHOSEN_IN_NUMBERS / classes) ** 0.5), ROWS_OF_A_CLASS * classes)


def _some(rows: int, most: int, seed: int) -> NDArray[np.int64]:
    """All rows, or so many of them."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def _eigenbasis(products: Array) -> tuple[Array, Array]:
    """(U, λ^½) of products = U λ Uᵀ, without what is rounding."""
    values, vectors = np.linalg.eigh(products)
    # Far above rounding, which is about 1e-16 of the largest one times the rows: roots of rounding would be divided by.
    kept = values > max(1e-12, 1e-10 * float(values.max(initial=0.0)))
    return vectors[:, kept], np.sqrt(values[kept])


def _in_features(
    both: _BothViews, labels: NDArray[np.int64], classes: int, weights: Array, C: float
) -> tuple[Array, Array, Array]:
    """W (classes, width), V (classes, n-grams) and b of the same problem, solved without the rows' products."""
    import scipy.optimize  # here, as in `logistic`: every command reads the methods

    width, ngrams = both.features.shape[1], both.counts.shape[1]
    present, of_row = np.unique(labels, return_inverse=True)
    whole, offsets = np.zeros((width + ngrams, classes)), np.full(classes, -ABSENT)
    if len(present) == 1:  # there is nothing to weigh
        offsets[present] = 0.0
        return whole[:width].T, whole[width:].T, offsets
    # Features in the eigenbasis of their covariance, where a diagonal metric says how much each coordinate matters.
    _, basis = np.linalg.eigh(both.features.T @ both.features)
    rotated, counts = both.features @ basis, np.sqrt(WORDS) * both.counts
    counts_T = counts.T.tocsr()
    squares = np.concatenate([weights @ rotated**2, counts.multiply(counts).T @ weights])
    # For two classes as `LogisticProblem.solve`.
    penalty = (2.0 if classes == 2 else 1.0) / C
    total = weights.sum()
    metric = np.append(0.25 * squares + penalty, 0.25 * total)
    scale = 1.0 / np.sqrt(metric)[:, None]
    rows = np.arange(len(labels))

    def objective(flat: Array) -> tuple[float, Array]:
        point = flat.reshape(len(metric), -1) * scale  # (width + n-grams + 1, present classes)
        coefficients = point[:-1]
        logits = rotated @ coefficients[:width] + counts @ coefficients[width:] + point[-1]
        logits -= logits.max(1, keepdims=True)
        residual = np.exp(logits)
        sums = residual.sum(1, keepdims=True)
        of_label = logits[rows, of_row] - np.log(sums[:, 0])
        residual /= sums
        residual[rows, of_row] -= 1.0
        residual *= weights[:, None]
        gradient = np.concatenate([rotated.T @ residual, counts_T @ residual, residual.sum(0, keepdims=True)])
        gradient[:-1] += penalty * coefficients
        loss = -float(of_label @ weights) + 0.5 * penalty * float(np.vdot(coefficients, coefficients))
        return loss / total, (gradient * scale / total).ravel()

    options = {"maxiter": MOST_STEPS, "gtol": NEAR / np.sqrt(total), "ftol": 0.0, "maxcor": KEPT_STEPS}
    begin = np.zeros(len(metric) * len(present))
    solution = scipy.optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
    point = solution.x.reshape(len(metric), -1) * scale
    whole[:, present] = np.concatenate([basis @ point[:width], point[width:-1]])
    offsets[:] = point[-1].min() - ABSENT
    offsets[present] = point[-1]
    return whole[:width].T, np.sqrt(WORDS) * whole[width:].T, offsets
