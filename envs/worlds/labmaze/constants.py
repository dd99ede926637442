"""What is fixed of LabMaze: its rate, its angle of view, its actions, and when a target is reached."""

from envs.actions import ActionSet

FPS = 15.0
VIEW_DEG = 70.0
TARGET_REACH_CELLS = 0.45
NUM_TARGETS = 4  # unless it is set
ACTIONS = ActionSet(
    name="LabMaze",
    names=("noop", "forward", "back", "turn_left", "turn_right", "forward_left", "forward_right"),
    keys=(
        ("w", "forward"),
        ("s", "back"),
        ("a", "left"),
        ("d", "right"),
        ("up", "forward"),
        ("down", "back"),
        ("left", "left"),
        ("right", "right"),
    ),
    chords=((), ("forward",), ("back",), ("left",), ("right",), ("forward", "left"), ("forward", "right")),
    opposites=(("forward", "back"), ("left", "right")),
    displacements=((0.0, 0.0), (0.0, 0.12), (0.0, -0.12), (6.0, 0.0), (-6.0, 0.0), (6.0, 0.12), (-6.0, 0.12)),
)
