"""Jobs that look after the lake, and what their runs and ticks do."""
