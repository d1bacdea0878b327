"""Where cohorts of trials are run: the worker that trains and evaluates one, in this process or on a Ray cluster.

An engine decides nothing: which cohort is next comes from `schedule`, how its tensors move from `train`. What it changes may be
the seconds, never a result.
"""
