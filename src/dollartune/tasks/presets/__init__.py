"""Public data sets as tasks, one file each. A module here with a `PRESET` is found by itself; nothing lists it.

A file holds what the data's own authors decided (columns, label words, splits) and what is known to leak.
"""
