"""Worlds: a folder each, with everything that is true of one world only. Nothing outside names a file in them."""
