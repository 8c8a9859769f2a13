"""What the project claims, measured: `python -m bench`, or `make bench`."""
