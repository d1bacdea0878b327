"""Training: encoding, batching, the loop over a cohort of trials, checkpoints.

One subject per file: the loss, the learning rate's schedule, early stopping, micro-batches, what to do out of memory. What is
trained comes from `methods` through `attachment`; how long, from `schedule`.
"""
