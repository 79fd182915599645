"""Dagster: what a run needs. Thin resources that return plain objects of the library."""
