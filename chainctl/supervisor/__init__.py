"""Reads, decides and acts: one worker per chain walks gather, resolve, observe, plan, execute."""
