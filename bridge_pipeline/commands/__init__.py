"""The `bridge` command, one module per group of commands; see `bridge_pipeline.cli`.

Modules import only what their help needs; the rest is imported when a command runs, so that
`bridge --help` answers at once.
"""
