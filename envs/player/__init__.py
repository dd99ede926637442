"""The player: a session of an environment in a window, or without one. Knows no world by name."""
