"""The words of the pipeline: series, datasets, days and what is known of them. Imports nothing but itself."""
