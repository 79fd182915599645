"""Dagster: when and how runs happen. Jobs, schedules, sensors, and runs from the command line."""
