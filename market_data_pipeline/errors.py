"""The faults that a user can meet. Each message says what happened, to what, and what to do."""


class MarketDataError(Exception):
    """A foreseeable fault: its text is for people, and no traceback is shown for it."""


class UsageError(MarketDataError):
    """Something asked for does not exist or cannot be meant: an unknown symbol, a date that is none. Exit code 2."""
