"""Formats of other projects: what was played, written to and read from their layouts."""
