"""Tests of the Dagster layer, against an ephemeral instance."""
