"""Where things lie on disk, and writing files that are never half there."""
