"""A study: the runner that asks a scheduler and tells it what came out, progress, results, status, the Python API.

What a single trial is and leaves is in `trials`, beneath; here is what needs all of them together.
"""
