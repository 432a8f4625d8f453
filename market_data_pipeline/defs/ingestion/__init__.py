"""Assets of series, and the code that their runs execute."""
