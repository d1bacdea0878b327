"""Which method to use: a ranking with reasons, from one's own study where there is one, else from published tables.

from dollartune.advise import advise
print(advise(n_examples=100, task_kind="classification", priority="quality").text())
"""

from __future__ import annotations

from dollartune.advise.advisor import advise
from dollartune.advise.answer import Advice, Recommendation

__all__ = ["Advice", "Recommendation", "advise"]
