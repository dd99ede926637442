"""What is measured of a world."""
