"""Fast paths of a pass: each isolated in a file, each tested against the plain path, none needed for a right result.

A path belongs here if taking it away changes nothing but seconds and bytes. What a method computes stays in `methods`.
"""
