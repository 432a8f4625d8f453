"""The types of the pipeline: series, datasets, days and their records. Pure.

Input and output do not belong here.
"""
