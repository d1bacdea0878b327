"""`dollartune view`: a local page over a study that runs or has run. It reads records, and asks a run to end a trial."""
