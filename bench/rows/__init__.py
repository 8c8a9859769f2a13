"""The rows of the benchmark; every module in here is imported by `python -m bench`."""
