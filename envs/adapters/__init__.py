"""Environments as other libraries take them."""
