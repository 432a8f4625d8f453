"""Coverage: how complete series are, as sums, calendars and pictures. Writing to the lake does not belong here."""
