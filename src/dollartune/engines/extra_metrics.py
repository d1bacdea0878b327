"""What else is measured once a trial is tuned: forgetting, and what a request costs.

Neither decides a score, so a measurement that fails or that the budget has no room for is left out and the record says
why; the trial stands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dollartune.budget.deadline import BudgetSpent
from dollartune.evaluate.cost import request_cost
from dollartune.evaluate.forgetting import GeneralText
from dollartune.trials.record import ForgettingFacts, Measured, RequestFacts

if TYPE_CHECKING:
    from dollartune.config import EvaluationSettings
    from dollartune.evaluate.evaluation import Evaluator
    from dollartune.methods.base import Method
    from dollartune.tasks.base import Example

log = logging.getLogger("dollartune")
Facts = TypeVar("Facts", RequestFacts, ForgettingFacts)

SPENT = "the budget was used up meanwhile"
SECONDS = 1.0
"""For asking requests again and again; at least each measurement is made once."""


@dataclass
class ExtraMetrics:
    """Measures the trials of one trial context, and remembers what they share.

    Args:
        settings: what is wanted.
        random_weights: the backbone's weights are random, so that it knows nothing to forget.
    """

    settings: EvaluationSettings
    random_weights: bool = False
    general: GeneralText | None = None
    slowest: dict[str, float] = field(default_factory=dict)
    """Seconds that each measurement took at most."""

    def take(
        self,
        evaluator: Evaluator,
        adapter: str | None,
        methods: Sequence[Method[Any]],
        examples: Sequence[Example],
        seed: int,
        seconds: float,
        seconds_per_row: float,
    ) -> Measured:
        """The record's `forgetting` and `inference`, each with its figures or with the `reason` why there are none.

        Args:
            examples: test rows, of which the first are asked.
            seconds: what may be spent; a measurement that would take longer is left out.
            seconds_per_row: what evaluating a row takes, to guess what the first measurement will take.
        """
        started = time.perf_counter()
        measured: Measured = {}
        if self.settings.inference_cost:
            # 8 requests alone, the same 8 in a batch, and as many rows again, because a request alone costs more than a row of
            # a batch.
            guess = SECONDS + 24 * seconds_per_row
            measured["inference"] = self._one(
                RequestFacts, guess, seconds, lambda: asdict(request_cost(evaluator, adapter, methods, examples, seed))
            )
        if self.settings.forgetting and adapter is not None:
            left = seconds - (time.perf_counter() - started)
            measured["forgetting"] = self._one(
                # The paragraphs of general text, up to 256 tokens each, with the adapter and without.
                ForgettingFacts,
                80 * seconds_per_row,
                left,
                lambda: self._forgetting(evaluator, adapter),
            )
        return measured

    def left_out(self, reason: str, adapter: bool) -> Measured:
        """What `take` would have measured, each with the reason why it was not."""
        measured: Measured = {}
        if self.settings.inference_cost:
            measured["inference"] = RequestFacts(reason=reason)
        if self.settings.forgetting and adapter:
            measured["forgetting"] = ForgettingFacts(reason=reason)
        return measured

    def _one(self, kind: type[Facts], guess: float, left: float, measure: Callable[[], Mapping[str, object]]) -> Facts:
        name = kind.__name__
        # A fifth on top of the slowest so far, as it cannot be ended half way without losing it.
        needed = 1.2 * self.slowest.get(name, guess)
        if needed > left:
            reason = f"it takes about {needed:.1f} s, and {max(0.0, left):.1f} s of its trial's money were for that"
            return kind.model_validate({"reason": reason})
        started = time.perf_counter()
        try:
            figures = measure()
        except BudgetSpent:
            figures = {"reason": SPENT}
        # Whatever it is: a trial that was trained and scored is not lost for a figure beside it.
        except Exception as error:
            log.debug("%s could not be measured", name, exc_info=True)
            figures = {"reason": f"it could not be measured: {error}"}
        self.slowest[name] = max(self.slowest.get(name, 0.0), time.perf_counter() - started)
        return kind.model_validate(figures)

    def _forgetting(self, evaluator: Evaluator, adapter: str) -> Mapping[str, object]:
        if self.random_weights:
            return {"reason": "random weights have nothing to forget"}
        if self.general is None:
            self.general = GeneralText(
                evaluator.backbone, evaluator.attached, evaluator.encoder, self.settings.general_text
            )
        if self.general.reason:
            return {"reason": self.general.reason}
        return asdict(self.general.measure(adapter))
