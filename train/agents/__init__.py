"""Agents that learn in one world and are judged in another: learning, playing, scores. Knows no options."""
