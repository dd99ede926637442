"""Play on disk: recorded episodes, and data sets of others."""
