"""The measurements of docs/benchmarks.md: whole pipelines, side by side, on one machine."""
