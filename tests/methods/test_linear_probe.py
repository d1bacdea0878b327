"""The solution of a linear probe and of nearest neighbours: scikit-learn's, the strongest regularization among equals, merged
into a head where that reads the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Attached
from dollartune.attachment.merging import merge, unmergeable
from dollartune.attachment.pooling import pooled_states
from dollartune.errors import UserError
from dollartune.methods.features import LabelledFeatures, pool, pools
from dollartune.methods.knn import KNN, TEMPERATURE, votes
from dollartune.methods.linear_probe import LinearProbe, LinearProbeConfig, Probe, solve_probe
from dollartune.methods.logistic import LogisticProblem, choose_C, stratified_folds
from dollartune.methods.registry import build_method, method_class
from dollartune.testing import tiny_backbone


def rows(count: int, width: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Correlated features, as a network's are, and labels that depend on them with noise."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(count, max(classes, width // 4)))
    features = hidden @ rng.normal(size=(hidden.shape[1], width)) + 0.3 * rng.normal(size=(count, width)) + 2.0
    return features, (hidden[:, :classes] + rng.normal(size=(count, classes))).argmax(1)


def probe(width: int, classes: int) -> Probe:
    return Probe(("mean",), width, classes)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("count", "width"), [(120, 20), (40, 60)])
@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_the_solution_is_scikit_learns(classes: int, count: int, width: int, C: float) -> None:
    features, labels = rows(count, width, classes)
    mine = probe(width, classes)
    with torch.no_grad():
        solve_probe(
            mine, LabelledFeatures(torch.tensor(features), torch.tensor(labels), classes), LinearProbeConfig(C=C)
        )
    standard = (features - features.mean(0)) / features.std(0)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(standard, labels)
    with torch.no_grad():
        ours = mine.scores(torch.tensor(features, dtype=torch.float32)).softmax(-1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standard), atol=1e-4)


def test_without_an_intercept_and_with_class_weights_too() -> None:
    features, labels = rows(150, 12, 3)
    labels[labels == 2] = np.where(np.arange((labels == 2).sum()) % 4, 0, 2)
    mine = probe(12, 3)
    config = LinearProbeConfig(C=0.5, class_weight="balanced", intercept=False)
    with torch.no_grad():
        solve_probe(mine, LabelledFeatures(torch.tensor(features), torch.tensor(labels), 3), config, intercept=False)
    scaled = features / features.std(0)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=20_000, fit_intercept=False, class_weight="balanced")
    np.testing.assert_allclose(mine.weight.detach().numpy(), theirs.fit(scaled, labels).coef_, atol=1e-4)
    assert not mine.bias.any()
    assert not mine.mean.any()


def test_the_folds_of_a_path_are_each_solved_as_alone() -> None:
    features, labels = rows(90, 15, 3)
    standard = (features - features.mean(0)) / features.std(0)
    weights = np.stack([np.arange(90) % 3 != fold for fold in range(3)]).astype(float)
    problem = LogisticProblem(standard, labels, 3, weights)
    problem.solve(0.01)  # warm starts change the way, not the end
    for fold, found in enumerate(problem.solve(1.0)):
        kept = weights[fold] > 0
        theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(standard[kept], labels[kept])
        np.testing.assert_allclose(found.weight, theirs.coef_, atol=1e-4)


def test_folds_hold_each_class_evenly_and_never_its_only_row() -> None:
    labels = np.array([0] * 10 + [1] * 7 + [2])
    fold = stratified_folds(labels, 5, 0)
    assert fold[-1] == -1
    for label in (0, 1):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(fold, stratified_folds(labels, 5, 1))


def test_the_cross_validation_finds_what_generalizes() -> None:
    """Labels that features say nothing of: the strongest regularization; labels that one feature decides: a weak one."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 50))
    noise = choose_C(features, rng.integers(0, 2, 200), 2, np.ones(200), 5, 0)
    clear = choose_C(features, (features[:, 0] > 0).astype(int), 2, np.ones(200), 5, 0)
    assert noise.C <= 1e-2
    assert clear.C >= 1e-1
    assert noise.losses[noise.C] == min(noise.losses.values())
    assert clear.accuracy > 0.85


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1], [0, 0, 0, 1, 1]])
def test_a_handful_of_rows_is_solved_too(labels: list[int]) -> None:
    features = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    mine = probe(8, 3)
    with torch.no_grad():
        found = solve_probe(mine, LabelledFeatures(features, torch.tensor(labels), 3), LinearProbeConfig())
        assert torch.isfinite(mine.scores(features)).all()
        if len(set(labels)) == len(labels):  # nothing to hold out, so nothing speaks for leaving rows unexplained
            assert mine.scores(features).argmax(-1).tolist() == labels
    assert found["C"] > 0


def test_features_that_never_change_do_no_harm() -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    features[:, 3] = 7.0
    mine = probe(6, 2)
    with torch.no_grad():
        solve_probe(mine, LabelledFeatures(features, torch.arange(30) % 2, 2), LinearProbeConfig())
        moved = features.clone()
        moved[:, 3] = 8.0
        torch.testing.assert_close(mine.scores(moved), mine.scores(features), atol=1e-4, rtol=0)


# Pooling


def test_pools_read_real_tokens_alone() -> None:
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = pool(states, mask, ("mean", "last", "first"))
    assert found.shape == (2, 9)
    torch.testing.assert_close(found[1], torch.cat([states[1, :2].mean(0), states[1, 1], states[1, 0]]))
    left = pool(states.flip(1), mask.flip(1), ("last", "first"))
    torch.testing.assert_close(left[1], torch.cat([states[1, 0], states[1, 1]]))


def test_what_auto_means_depends_on_the_backbone() -> None:
    found = {name: pools("auto", tiny_backbone(name).anatomy) for name in ("bert", "t5", "opt", "vit")}
    assert found == {"bert": ("mean",), "t5": ("mean",), "opt": ("last", "mean"), "vit": ("first", "mean")}
    with pytest.raises(UserError, match="Did you mean 'mean'"):
        pools("meen", tiny_backbone("bert").anatomy)


@pytest.mark.parametrize("family", ["bert", "vit", "opt/classification", "llama/classification", "t5/classification"])
def test_features_do_not_depend_on_neighbours(family: str) -> None:
    backbone = tiny_backbone(family)
    inputs = backbone.inputs(4, 9)
    attached = Attached(backbone.model, backbone.anatomy)
    together = pooled_states(attached, inputs, ("mean", "last", "first"))
    for row in range(4):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        if (mask := alone.get("attention_mask")) is not None:
            alone = {name: tensor[:, : int(mask.sum())] for name, tensor in alone.items()}
        torch.testing.assert_close(
            pooled_states(attached, alone, ("mean", "last", "first"))[0], together[row], rtol=1e-4, atol=1e-5
        )
    attached.detach()


# Merging


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("opt/classification", {"pooling": "last", "intercept": False}),
        ("llama/classification", {"pooling": "last", "intercept": False}),
        ("vit", {"pooling": "first"}),
    ],
)
def test_where_the_head_reads_the_same_it_takes_the_probes_weights(family: str, settings: dict[str, Any]) -> None:
    backbone = tiny_backbone(family)
    adapter = Adapter([LinearProbe(**settings)], backbone.anatomy, backbone.model)
    inputs = backbone.inputs(6)
    attached = Attached(backbone.model, backbone.anatomy)
    attached.put("probe", adapter)
    part = adapter.parts[0]
    assert adapter.readout is not None
    features = pooled_states(attached, inputs, adapter.readout.pooling)
    with torch.no_grad():
        part.method.solve(part, LabelledFeatures(features, torch.arange(6) % 3, 3))  # type: ignore[operator, union-attr]
        with attached.routed("probe"):
            expected = backbone.logits(attached, inputs)
    attached.detach()
    model = copy.deepcopy(backbone.model)
    assert not unmergeable(adapter)
    merge(model, backbone.anatomy, adapter)
    with torch.no_grad():
        found = backbone.logits(Attached(model, backbone.anatomy), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("bert", {}, "the probe reads mean, the backbone's head a pooled output"),
        ("opt/classification", {"pooling": "mean"}, "reads mean, the backbone's head last"),
        ("opt/classification", {"pooling": "last"}, "no bias"),
        ("t5/classification", {}, "hidden layer"),
    ],
)
def test_elsewhere_merging_says_why_not(family: str, settings: dict[str, Any], why: str) -> None:
    backbone = tiny_backbone(family)
    adapter = Adapter([LinearProbe(**settings)], backbone.anatomy, backbone.model)
    with pytest.raises(UserError, match=why):
        merge(copy.deepcopy(backbone.model), backbone.anatomy, adapter)


# Nearest neighbours


def test_neighbours_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=-1)
    labels = torch.randint(0, 3, (40,), generator=generator)
    asked = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    distances, nearest = NearestNeighbors(n_neighbors=7, metric="cosine").fit(unit.numpy()).kneighbors(asked.numpy())
    weights = np.exp(-distances / TEMPERATURE)
    expected = np.stack([np.bincount(labels[own], w, minlength=3) for own, w in zip(nearest, weights, strict=True)])
    expected = expected + weights[:, -1:]
    found = votes(asked @ unit.mT, labels, 3, 7).exp().numpy()
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-3)


def test_k_is_chosen_by_leaving_rows_out() -> None:
    """Classes that are two far clouds each, and noisy labels: one neighbour is too few."""
    generator = torch.Generator().manual_seed(0)
    backbone = tiny_backbone("bert")
    adapter = Adapter([KNN()], backbone.anatomy, backbone.model)
    labels = torch.arange(120) % 2
    features = torch.randn(120, 32, generator=generator) + 3.0 * labels[:, None]
    noisy = torch.where(torch.rand(120, generator=generator) < 0.2, 1 - labels, labels)
    part: Any = adapter.parts[0]
    part.method.solve(part, LabelledFeatures(features, noisy, 3))
    assert part.method.report(part)["k"] >= 5


# Names and settings


def test_the_old_name_says_what_it_was() -> None:
    assert method_class("linear_probe") is LinearProbe
    with pytest.raises(UserError, match="the name meant `head`"):
        build_method("linear_probe(lr=0.01)")
