"""Plans, runs and records the trials of a study."""
