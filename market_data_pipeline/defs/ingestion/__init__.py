"""Assets of series, and what their runs do."""
