"""Evaluation: label scoring, classification heads, free generation, scores and the breakdown of predictions.

Also what a tuned model costs in use (`cost`, `forgetting`), and predictions for rows of one's own. The measures themselves are
in `metrics`, how sure one may be of them in `stats`.
"""
