"""Where cohorts of trials are run: the worker that trains and evaluates one, in this process or on a Ray cluster."""
