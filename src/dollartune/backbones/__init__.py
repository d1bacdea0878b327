"""Pretrained models: reading, quantizing and spreading them, and the map from their own module names to roles (`anatomy`).

A family's peculiarities belong in its file in `families/`, what can be read off a running model in `probing` and `structure`.
Nothing here knows methods or tasks. Imports nothing, so that the command line can ask for an embedded name in no time.
"""
