"""What training programs share: options, the loop, timing, plans."""
