"""A cohort on a processor: its trials are divided over the cores, each part is trained by a thread of its own.

    one pass, all cores     [ trials 1 2 3 4 5 6 7 8 ]        every operator waits for its slowest core
    two threads             [ trials 1 2 3 4 ]  core 1        nobody waits, and each core has its tensors in its own cache
                            [ trials 5 6 7 8 ]  core 2

Threads meet about twice a second, and wherever a trial is to be validated: between, nobody looks at what they change.
Each trial's numbers are those that it has alone; `tests/train/test_trial_threads.py` holds them equal. It keeps its thread to
the end, so that nothing depends on how fast a core just is, and a run that was interrupted goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.fast.shared_weight_replica import replica
from dollartune.train.forward_backward import ForwardBackward
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.train.trial import TrialState

ROUND_SECONDS = 0.5
"""How long threads run before they meet. Budgets, Ctrl-C and the display wait for that, and meeting costs milliseconds."""


class TrialThreads:
    """Threads that train trials side by side.

    Args:
        first: the passes of the model itself; the other threads have replicas of it that share its weights.
        trials: all of the cohort.
        count: how many threads.
    """

    def __init__(self, backbone: Backbone, first: ForwardBackward, trials: Sequence[TrialState], count: int) -> None:
        width = {trial.name: trial.adapter.virtual_tokens() for trial in trials}
        by_width = sorted(trials, key=lambda trial: width[trial.name])  # trials of one width can share passes
        cuts = [len(by_width) * i // count for i in range(count + 1)]
        self.parts = [by_width[start:stop] for start, stop in pairwise(cuts)]
        """The trials of each thread."""
        # caches of no size: trials whose frozen prefix is known do not train in threads at all
        others = [ForwardBackward(backbone, replica(first.attached), FrozenPrefixCache(0)) for _ in range(count - 1)]
        self.forward_backwards = [first, *others]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block, threads can run."""
        cores = torch.get_num_threads()
        self._cores_each = max(1, cores // len(self.forward_backwards))
        pool = ThreadPoolExecutor(len(self.forward_backwards), "trials", torch.set_num_threads, (self._cores_each,))
        with ExitStack() as kernels, pool as self._pool:
            for forward_backward in self.forward_backwards[1:]:
                kernels.enter_context(fast_kernels(forward_backward.attached))
            yield

    def run(self, work: Callable[[ForwardBackward, list[TrialState]], None]) -> None:
        """Does the work with the trials of each thread, and waits for all. The first error of any is raised."""
        cores = torch.get_num_threads()
        torch.set_num_threads(self._cores_each)  # MKL knows one number for all threads
        parts = zip(self.forward_backwards, self.parts, strict=True)
        futures = [self._pool.submit(work, *part) for part in parts]
        try:
            for future in futures:
                future.result()
        finally:
            wait(futures)  # after Ctrl-C too: a step that is half done cannot be saved
            torch.set_num_threads(cores)
