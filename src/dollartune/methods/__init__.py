"""Tuning methods, one file each. `registry.methods()` lists them; `base.Method` is the contract."""
