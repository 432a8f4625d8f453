"""Jobs that maintain the lake, and the code that their runs and ticks execute."""
