"""Training: encoding, batching, the loop over a cohort of trials, checkpoints."""
