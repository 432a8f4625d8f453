"""Coverage: how complete series are, in sums, as calendars and as pictures. Reads only."""
