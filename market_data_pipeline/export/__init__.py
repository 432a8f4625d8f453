"""Exports: stored rows as files of other tools, never filled, with their gaps and versions next to them.

Each format is a row of ``formats.py`` and a module that writes it. Reading the lake belongs to ``lake``.
"""

from market_data_pipeline.export.formats import FORMATS, ExportFormat
from market_data_pipeline.export.run import ChosenSeries, SeriesExport, choose_series, days_to_export, export_series

__all__ = [
    "FORMATS",
    "ChosenSeries",
    "ExportFormat",
    "SeriesExport",
    "choose_series",
    "days_to_export",
    "export_series",
]
