"""Multinomial logistic regression, solved: the optimum itself, not a number of steps towards it; no method by itself.

    minimize over W, b     Σ_i w_i · −log softmax(W x_i + b)[y_i]  +  ‖W‖² / (2 C)          b is not penalized

The penalty does not change when x is rotated, so the problem is solved in the eigenbasis of the features' covariance, where
L-BFGS with a diagonal metric needs some ten steps (some hundreds without, since features of a network are correlated).
Larger C are reached from the solution of the one before. The folds of a cross-validation are one problem with a block for
each, which shares its matrix products.

Source: the objective is scikit-learn's `LogisticRegression(C=...)`, and a test holds the solutions equal. L-BFGS: Liu and
Nocedal 1989, SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PATH = tuple(10.0 ** (half / 2) for half in range(-8, 7))
"""C from strong to weak regularization, two to a decade: between neighbours a held-out loss moves by less than its own error."""
WORSE_IN_A_ROW = 3
"""The path ends after this many C without a better held-out loss: the loss falls, then rises. One worse value may be noise."""
ROUGH, EXACT = 1e-4, 1e-8
"""Largest gradient of the mean loss at the end, in the scaled coordinates, where the optimum's curvature is about 1: scores
then agree with the optimum's to about as much. To rank C the first will do; what is handed over is exact."""
MOST_STEPS = 500
"""L-BFGS stops there at the latest; separable rows with C = 1000 need the most, some hundred."""


_STEPS = 12
"""L-BFGS steps from one C to the next, as seen on networks' features."""


def operations(rows: int, width: int, classes: int, folds: int) -> float:
    """Floating-point operations of choosing C and solving, roughly: rotations, then two products per step and problem."""
    rotating = 4.0 * rows * width * min(rows, width) + 25.0 * min(rows, width) ** 3
    return 2 * rotating + 4.0 * rows * min(rows, width) * classes * _STEPS * (folds * len(PATH) + 4)


@dataclass(frozen=True)
class Logistic:
    """A solution."""

    weight: Array
    """(classes, width)."""
    bias: Array
    """(classes,), zeros without an intercept."""
    C: float


class LogisticProblem:
    """Rows and labels, rotated once, to be solved for any C.

    Args:
        features: (rows, width).
        labels: (rows,), in 0 .. classes - 1.
        weights: (problems, rows), weight of each row in each of several problems that are solved side by side: 1, a class
            weight, 0 where a fold leaves the row out.
        intercept: whether there is a bias.
        orthogonal: whether the features' columns are orthogonal already, so that nothing has to be rotated.
    """

    def __init__(
        self,
        features: Array,
        labels: NDArray[np.int64],
        classes: int,
        weights: Array,
        intercept: bool = True,
        orthogonal: bool = False,
    ):
        self.labels, self.classes, self.weights, self.intercept = labels, classes, weights, intercept
        # right singular vectors, from the smaller of the two Gram matrices
        if orthogonal:
            self.basis = np.eye(features.shape[1])
        elif len(features) < features.shape[1]:
            # Fewer rows than numbers: the (rows, rows) matrix has the same non-zero eigenvalues.
            values, left = np.linalg.eigh(features @ features.T)
            kept = values > values.max(initial=0.0) * 1e-12  # below is rounding, and no row reaches there
            self.basis = features.T @ left[:, kept] / np.sqrt(values[kept])
        else:
            values, self.basis = np.linalg.eigh(features.T @ features)
        self.rotated = features if orthogonal else features @ self.basis  # (rows, rank)
        self.spread = (self.rotated**2).mean(0)  # (rank,) variance along each eigenvector
        self._point = np.zeros((len(weights), classes, self.rotated.shape[1] + 1))

    def solve(self, C: float, tolerance: float = EXACT) -> list[Logistic]:
        """The solution of each problem, begun at those of the C before."""
        import scipy.optimize  # here: every command reads the methods, and few solve anything

        # scikit-learn has one weight vector for two classes, whose penalty is twice that of two opposite ones
        wanted, C = C, C / 2 if self.classes == 2 else C
        total = self.weights.sum(1)  # (problems,)
        # curvature of the loss: at most 1/4 (two classes) of the features' spread, per weight of all rows
        curvature = 0.25 * total[:, None] * self.spread[None]
        # The last one is the bias, which has no penalty; 1e-12 keeps it above zero where a fold has no rows.
        metric = np.concatenate([curvature + 1.0 / C, 0.25 * total[:, None] + 1e-12], axis=1)
        scale = 1.0 / np.sqrt(metric)[:, None, :]  # (problems, 1, rank + 1)
        if not self.intercept:
            # A coordinate of scale 0 never moves: no bias, and no second code path.
            scale[..., -1] = 0.0
        size = total.max()

        def objective(flat: Array) -> tuple[float, Array]:
            point = flat.reshape(self._point.shape) * scale
            loss, gradient = self._loss(point, C)
            return loss / size, (gradient * scale / size).ravel()

        # where the scale is 0 (no intercept), 0 / 0 would be not a number
        begin = np.divide(self._point, scale, out=np.zeros_like(self._point), where=scale > 0)
        solution = scipy.optimize.minimize(
            objective,
            begin.ravel(),
            jac=True,
            method="L-BFGS-B",
            # ftol 0: with many problems side by side one that has converged must not end the others. 20 pairs are kept,
            # as they are small beside the features.
            options={"maxiter": MOST_STEPS, "gtol": tolerance / np.sqrt(size), "ftol": 0.0, "maxcor": 20},
        )
        self._point = solution.x.reshape(self._point.shape) * scale
        weight = self._point[..., :-1] @ self.basis.T
        return [Logistic(w, p[:, -1], wanted) for w, p in zip(weight, self._point, strict=True)]

    def scores(self) -> Array:
        """(problems, rows, classes) of the solution that was found last."""
        products: Array = np.einsum("nr,pcr->pnc", self.rotated, self._point[..., :-1], optimize=True)
        return products + self._point[:, None, :, -1]

    def _loss(self, point: Array, C: float) -> tuple[float, Array]:
        """Sum of all problems' objectives, and its gradient, of point's shape (problems, classes, rank + 1)."""
        problems, classes, rank = point.shape[0], self.classes, self.rotated.shape[1]
        flat = point[..., :-1].reshape(problems * classes, rank)  # no -1: the rank may be 0
        logits = (self.rotated @ flat.T).reshape(-1, problems, classes) + point[..., -1]  # (rows, problems, classes)
        # Else exp overflows with a large C, whose logits are in the hundreds.
        logits -= logits.max(-1, keepdims=True)
        exponentials = np.exp(logits)
        total = exponentials.sum(-1, keepdims=True)
        rows = np.arange(len(self.labels))
        of_label = logits[rows, :, self.labels] - np.log(total[..., 0])  # (rows, problems)
        loss = -(of_label * self.weights.T).sum() + (flat**2).sum() / (2 * C)
        residual = exponentials / total
        residual[rows, :, self.labels] -= 1.0
        residual *= self.weights.T[..., None]
        gradient = np.empty_like(point)
        gradient[..., :-1] = (residual.reshape(len(rows), -1).T @ self.rotated + flat / C).reshape(
            problems, classes, rank
        )
        gradient[..., -1] = residual.sum(0)
        return float(loss), gradient


def stratified_folds(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, every class spread evenly; -1 for rows that are never left out, as the only ones of their class."""
    rng = np.random.default_rng(seed)
    fold = np.full(len(labels), -1)
    begin = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            fold[rows] = (begin + np.arange(len(rows))) % folds
            begin += len(rows)  # the next class goes on where this one ended, so that folds are of one size
    return fold


@dataclass(frozen=True)
class CrossValidated:
    """What a cross-validation found."""

    C: float
    losses: dict[float, float]
    """C -> mean held-out -log p(label)."""
    accuracy: float
    """Held-out accuracy at the chosen C; not a number where no row could be held out."""


def choose_C(
    features: Array,
    labels: NDArray[np.int64],
    classes: int,
    row_weights: Array,
    folds: int,
    seed: int,
    path: Sequence[float] = PATH,
    intercept: bool = True,
    orthogonal: bool = False,
) -> CrossValidated:
    """C by stratified cross-validation on -log p(label), ties to the stronger regularization.

    Log loss and not accuracy: it uses how sure each answer is, so that a few hundred rows decide; accuracy would tie.

    Args:
        folds: at most so many; a class with fewer rows is in some folds only, a class with one row is never held out.
    """
    folds = min(folds, len(labels))  # more would hold out no row
    fold = stratified_folds(labels, folds, seed)
    held = [np.flatnonzero(fold == number) for number in range(folds)]
    held = [rows for rows in held if len(rows)]
    if not held:  # one row of each class: nothing can be held out
        return CrossValidated(WITHOUT_VALIDATION, {}, float("nan"))
    weights = np.stack([np.where(np.isin(np.arange(len(labels)), rows), 0.0, row_weights) for rows in held])
    problem = LogisticProblem(features, labels, classes, weights, intercept, orthogonal)
    losses: dict[float, float] = {}
    accuracies: dict[float, float] = {}
    best, worse = path[0], 0
    for C in path:
        problem.solve(C, ROUGH)
        scores = problem.scores()
        scores -= scores.max(-1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        of_label = np.concatenate([log_p[number][rows, labels[rows]] for number, rows in enumerate(held)])
        hits = np.concatenate([scores[n][rows].argmax(-1) == labels[rows] for n, rows in enumerate(held)])
        weight = np.concatenate([row_weights[rows] for rows in held])
        losses[C], accuracies[C] = float(-(of_label * weight).sum() / weight.sum()), float(hits.mean())
        if losses[C] < losses[best] or best == C:
            best, worse = C, 0
        else:
            worse += 1
            if worse == WORSE_IN_A_ROW:
                break
    return CrossValidated(best, losses, accuracies[best])


WITHOUT_VALIDATION = 0.1
"""C where no row can be held out: with standardized features rather strong, as so few rows are separable anyway."""
