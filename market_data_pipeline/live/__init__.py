"""The live feed: streams and REST become live rows. Everything here needs the extra ``live``.

``candles``, ``trades`` and ``market`` are pure: events in, effects out. ``feed`` connects, stores and waits.
"""
