"""A cohort on a processor: its trials are divided over the cores, each part passes with threads of its own.

    one pass, all cores     [ trials 1 2 3 4 5 6 7 8 ]        every operator waits for its slowest core
    two lanes               [ trials 1 2 3 4 ]  core 1        nobody waits, and each core has its tensors in its own cache
                            [ trials 5 6 7 8 ]  core 2

Lanes meet about twice a second, and wherever a trial is to be validated: between, nobody looks at what they change.
Each trial's numbers are those that it has alone; `tests/train/test_lanes.py` holds them equal. It keeps its lane to the end, so
that nothing depends on how fast a core just is, and a run that was interrupted goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch

from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.fast.shared_weight_replica import replica
from dollartune.backbones.loading import Backbone
from dollartune.train.forward_backward import Passes
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.trial import TrialState

ROUND_SECONDS = 0.5
"""How long lanes run before they meet. Budgets, Ctrl-C and the display wait for that."""


class Lanes:
    """Threads that run passes side by side.

    Args:
        first: the passes of the model itself; the other lanes have twins of it.
        trials: all of the cohort.
        count: how many lanes.
    """

    def __init__(self, backbone: Backbone, first: Passes, trials: Sequence[TrialState], count: int) -> None:
        width = {trial.name: trial.adapter.virtual_tokens() for trial in trials}
        alike = sorted(trials, key=lambda trial: width[trial.name])  # those that share passes
        cuts = [len(alike) * i // count for i in range(count + 1)]
        self.parts = [alike[start:stop] for start, stop in pairwise(cuts)]
        """The trials of each lane."""
        own = [Passes(backbone, replica(first.attached), FrozenPrefixCache(0)) for _ in range(count - 1)]
        self.passes = [first, *own]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block, lanes can run."""
        everything = torch.get_num_threads()
        self._threads = max(1, everything // len(self.passes))
        pool = ThreadPoolExecutor(len(self.passes), "lane", torch.set_num_threads, (self._threads,))
        with ExitStack() as kernels, pool as self._pool:
            for passes in self.passes[1:]:
                kernels.enter_context(fast_kernels(passes.attached))
            yield

    def run(self, work: Callable[[Passes, list[TrialState]], None]) -> None:
        """Does the work with the trials of each lane, and waits for all. The first error of any is raised."""
        everything = torch.get_num_threads()
        torch.set_num_threads(self._threads)  # MKL knows one number for all threads
        futures = [self._pool.submit(work, *lane) for lane in zip(self.passes, self.parts, strict=True)]
        try:
            for future in futures:
                future.result()
        finally:
            wait(futures)  # after Ctrl-C too: what is half done cannot be saved
            torch.set_num_threads(everything)
