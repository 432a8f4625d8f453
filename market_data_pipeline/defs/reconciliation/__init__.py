"""The reconciliation job, and what its runs do."""
