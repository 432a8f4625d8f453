"""Work across series that keeps a lake right: sweeps, scrubs, compaction, and which days are due. No Dagster."""
