"""Where data comes from: the archive and REST."""
