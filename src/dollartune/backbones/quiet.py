"""Keeps transformers from writing to the terminal while models are built and loaded."""

from __future__ import annotations

import logging


class quiet_transformers:
    """transformers reports new heads and progress bars on stderr; ours is the only progress a user should see."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self.level = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()
        self.placing = logging.getLogger("accelerate.big_modeling")  # it says of every device map that weights are away
        self.placing_level = self.placing.level
        self.placing.setLevel(logging.ERROR)
        hf_logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        from transformers.utils import logging as hf_logging

        self.placing.setLevel(self.placing_level)
        hf_logging.set_verbosity(self.level)
