"""Results of a study as frames: one row per trial, a leaderboard with intervals, predictions per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dollartune.trials.store import Store

if TYPE_CHECKING:
    import pandas


class Results:
    """What a study has found.

    Args:
        store: its folder.
        trials: restrict to these identifiers; by default all that have a record.
    """

    def __init__(self, store: Store, trials: Sequence[str] | None = None) -> None:
        self.store = store
        wanted = set(trials) if trials is not None else None
        self.records = [r for r in store.records() if wanted is None or r["id"] in wanted]

    def done(self) -> list[dict[str, Any]]:
        """Records of trials that ended with a score."""
        return [record for record in self.records if record["status"] == "done"]

    def frame(self) -> pandas.DataFrame:
        """One row per trial: what it was, its scores, its cost, scores per parameter, second and dollar, convergence,
        forgetting and the cost of a request."""
        import pandas

        return pandas.DataFrame([trial_row(record) for record in self.records])

    def leaderboard(self) -> pandas.DataFrame:
        """One row per task, scale and method variant, best first: mean score with its interval, paired difference to
        the best, whether it may be the best, seconds, dollars, parameters."""
        import pandas

        from dollartune.study.compare import standings

        return pandas.DataFrame(standings(self))

    def predictions(self, trial: str) -> list[dict[str, Any]]:
        """Predictions of one trial."""
        return self.store.predictions(trial)

    def best(self) -> dict[str, Any] | None:
        """The record with the best validation score among those whose adapter was kept."""
        kept = [r for r in self.done() if (self.store.folder(r["id"]) / "adapter").is_dir()]
        return max(kept, key=lambda r: (r["validation"] or {}).get("score") or float("-inf"), default=None)

    def _repr_html_(self) -> str:
        return str(self.leaderboard().to_html(index=False))


def trial_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a flat row."""
    trial, cost = record["trial"], record["cost"]
    row = {
        "trial": record["id"],
        "status": record["status"],
        "task": trial["task"],
        "scale": trial["scale"],
        "method": trial["group"],
        "label": trial["label"],
        "seed": trial["seed"],
        "seconds": cost["seconds"],
        "dollars": cost["dollars"],
    }
    if record["status"] != "done":
        return {**row, "error": record["error"]["class"]}
    trainable, score = record["parameters"]["trainable"], record["score"]
    training = record["training"] or {}
    generation = record["generation"]["scores"]
    return {
        **row,
        "metric": record["metric"],
        "score": score,
        "validation_score": (record["validation"] or {}).get("score"),
        "trainable": trainable,
        "total": record["parameters"]["total"],
        "peak_bytes": record["memory"]["peak_bytes"],
        "adapter_bytes": (record.get("adapter") or {}).get("bytes"),
        "epochs_to_best": training.get("best_epoch"),
        "seconds_to_best": training.get("best_seconds"),
        "validation_loss": training.get("best_validation_loss"),
        "score_per_million_parameters": score / trainable * 1e6 if trainable else None,
        "score_per_second": score / cost["seconds"] if cost["seconds"] else None,
        "score_per_dollar": score / cost["dollars"] if cost["dollars"] else None,
        "prompt_tokens": record["test"]["prompt_tokens"],
        **measure_columns(record),
        **record["scores"],
        **{f"generated_{name}": value for name, value in generation.items()},
    }


def measure_columns(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Forgetting (nats per token that the loss on general text rose) and the cost of a request; None where not measured."""
    general, request = record.get("forgetting") or {}, record.get("inference") or {}
    price, seconds = record["cost"].get("price_per_hour"), request.get("seconds")
    return {
        "general_loss_before": general.get("before"),
        "general_loss_after": general.get("after"),
        "forgetting": general["after"] - general["before"] if "after" in general else None,
        "request_seconds": seconds,
        "request_alone_seconds": request.get("alone_seconds"),
        "request_tokens": request.get("prompt_tokens"),
        "dollars_per_1000_requests": seconds * 1000 * price / 3600 if seconds is not None and price else None,
    }
