"""Data made of other series of the lake."""
