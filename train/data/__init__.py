"""From a recording to what training and measures read."""
