"""Public data sets as tasks, one file each. A module here with a `PRESET` is found by itself; nothing lists it."""
