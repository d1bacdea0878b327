"""Fast paths of a pass: each isolated in a file, each tested against the plain path, none needed for a right result."""
