"""The supervisor's process: unix socket, lock, and one worker per chain."""
