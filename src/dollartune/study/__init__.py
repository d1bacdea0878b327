"""A study: the runner that asks a scheduler and tells it what came out, progress, results, status, the Python API."""
