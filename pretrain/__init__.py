"""How the embedded backbones were made; run `python -m pretrain` from the repository root. Not part of the package."""
