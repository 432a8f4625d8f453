"""The live feed in Dagster: what it observes. The feed itself runs as a process of its own."""
