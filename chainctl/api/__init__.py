"""Talking to the supervisor: one JSON object a line over a unix socket."""
