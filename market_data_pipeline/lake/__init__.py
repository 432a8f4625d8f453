"""The lake: paths, atomic files, Parquet, ledgers, checksums and quarantine. SQL over it belongs to ``sql``."""
