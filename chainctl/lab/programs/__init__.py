"""Programs that run inside a lab, each a file of its own started with `python -I`.

They use the standard library alone, because an isolated interpreter does not find chainctl.
"""
