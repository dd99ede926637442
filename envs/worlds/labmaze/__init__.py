"""LabMaze: DeepMind Lab's random mazes, drawn by MuJoCo."""
