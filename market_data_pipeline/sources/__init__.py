"""Sources of data: the archive and REST."""
