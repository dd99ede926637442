"""Tasks: what an agent is to do in a world, the same in the real one and in dreams of it."""
