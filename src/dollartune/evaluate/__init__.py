"""Evaluation: label scoring, classification heads, free generation, scores and the breakdown of predictions."""
