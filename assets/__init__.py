"""Dagster: what exists. Assets and checks that name, partition and call one step each."""
