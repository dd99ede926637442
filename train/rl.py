"""Program: learn in one world, judge in another. `python -m train.rl --train ID --judge ID --out DIR`.

Owns: the options, who learns where and is judged where, their order, and what is done already: every agent and every
judgement is a file in `--out`, so the same command goes on where it stopped. Does not know how agents learn or play
(`train.agents`), nor what a report looks like (`train.reports.agents`).
"""

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.agents.agent import Agent, Player, RandomAgent, load_agent, require_packages
from train.agents.judging import judge, record_video
from train.agents.ppo import PPOSettings, learn
from train.agents.scores import ROLES
from train.agents.worlds import check_alike, check_player, make_worlds, read_settings
from train.core.options import options_to_json, parse_options, run_program, save_json
from train.reports.agents import write_report
from worldmodel.devices import pick_device
from worldmodel.errors import ConfigError, DataError

MODES = {"drawn": False, "greedy": True}
JUDGE_SEED, TRAIN_SEED = 1_000_000, 2_000_000  # of episodes to judge by; those to learn from begin at 0
JUDGED_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class RLOptions:
    """Let agents learn in one world by PPO and judge them in another, beside agents that learned there, and chance."""

    out: Path
    """Folder of agents, judgements and the report; made if missing. The same command goes on with it."""
    train: str = "envs:Dream/LabMazeReach-v0"
    """Id of the world to learn in."""
    judge: str = "envs:Real/LabMazeReach-v0"
    """Id of the world to judge in."""
    train_settings: tuple[str, ...] = ()
    """Settings of the world to learn in, NAME=VALUE, such as start=far max_episode_steps=25 starts=starts.h5."""
    judge_settings: tuple[str, ...] = ()
    """Settings of the world to judge in."""
    control_settings: tuple[str, ...] = ("split=train",)
    """Settings, beside --judge-settings, of the judge's world where the control learns in it."""
    seeds: int = 5
    """Agents of each kind, with seeds from 0."""
    only: tuple[int, ...] = ()
    """Seeds to work on now; default all. Several processes may share the work."""
    frames: int = 17_000
    """Frames that each agent learns from, rounded up to whole updates."""
    episodes: int = 128
    """Episodes that each agent is judged by, with actions drawn, and as many with the likeliest ones."""
    train_episodes: int = 32
    """Episodes in the world to learn in, of each agent; what the control earns there says how rightly it pays."""
    video_episodes: int = 6
    """Episodes in each video of the first agent; 0: no videos."""
    agents: Path | None = None
    """Folder of another run, whose agents are judged; nobody learns."""
    device: str = "auto"
    """Where agents learn: auto, cpu, cuda or cuda:N. A dream's own is among its settings."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """How agents learn."""

    def __post_init__(self) -> None:
        least = {"seeds": 1, "frames": 1, "episodes": 2, "train_episodes": 0, "video_episodes": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; got {getattr(self, name)}")
        if wrong := [seed for seed in self.only if not 0 <= seed < self.seeds]:
            raise ConfigError(f"--only {wrong} are not among the seeds from 0 to {self.seeds - 1}")

    @property
    def chosen(self) -> tuple[int, ...]:
        """Seeds to work on now."""
        return self.only or tuple(range(self.seeds))

    @property
    def agents_folder(self) -> Path:
        """Folder of the agents, a folder each."""
        return (self.agents or self.out) / "agents"

    def judgement_file(self, role: str, seed: int, place: str) -> Path:
        """Return the file of what an agent earned; `place` is judge or train."""
        return self.out / "judged" / f"{role}-{seed}-{place}.json"


def check_options(options: RLOptions) -> int:
    """Check all that can be, before anything slow begins; return the number of actions.

    Raises:
        ConfigError: an id, a setting or spaces that do not fit, or the folder holds results of other settings.
        MissingPackageError: a package of a world or of learning is missing. Others as the worlds' own.
    """
    require_packages(*(["tensorboard"] if options.agents is None else []))
    pick_device(options.device)
    check_folder(options)
    places = ["judge"] if options.agents is not None else ["judge", "control", "train"]
    with contextlib.ExitStack() as stack:
        made = [(name_place(options, place), stack.enter_context(open_worlds(options, place, 1))) for place in places]
        check_alike(made)
        num_actions = int(made[0][1].single_action_space.n)
    save_json(options.out / "settings.json", _kept_settings(options))
    return num_actions


def _kept_settings(options: RLOptions) -> dict[str, Any]:
    """Return what all results in a folder must agree in."""
    free = ("out", "seeds", "only", "video_episodes", "device")
    values = {name: value for name, value in options_to_json(options).items() if name not in free}
    return json.loads(json.dumps(values))


def check_folder(options: RLOptions) -> None:
    """Check that what a folder holds is of these settings.

    Raises:
        ConfigError: it is of others. DataError: its settings cannot be read.
    """
    path = options.out / "settings.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): choose another --out, or remove it") from error
    wanted = _kept_settings(options)
    if differing := [name for name in wanted if wanted[name] != found.get(name)]:
        told = "; ".join(f"{name} {found.get(name)}, now {wanted[name]}" for name in differing)
        raise ConfigError(f"{options.out} holds results of other settings ({told}): choose another --out")


def name_place(options: RLOptions, place: str) -> str:
    """Return the id of the world of a place: train, judge or control."""
    return options.train if place == "train" else options.judge


def list_settings(options: RLOptions, place: str) -> list[str]:
    """Return the settings NAME=VALUE of the world of a place."""
    if place == "train":
        return list(options.train_settings)
    return [*options.judge_settings, *(options.control_settings if place == "control" else ())]


@contextlib.contextmanager
def open_worlds(options: RLOptions, place: str, num_envs: int, mode: str = "DISABLED") -> Iterator[Any]:
    """Make worlds and close them in the end.

    Args:
        options: name them.
        place: train, judge or control.
        num_envs: how many.
        mode: of the reset after an end: DISABLED to judge, SAME_STEP to learn.
    """
    settings = read_settings(list_settings(options, place))
    envs = make_worlds(name_place(options, place), num_envs, mode, settings)
    try:
        yield envs
    finally:
        envs.close()


def learn_or_load(options: RLOptions, role: str, seed: int) -> Agent:
    """Return an agent, which learns if it has not yet.

    Raises:
        CheckpointError: the folder of agents lacks it. Others as `learn`.
    """
    folder = options.agents_folder / f"{role}-{seed}"
    if options.agents is not None or (folder / "curve.json").is_file():
        return load_agent(folder)

    place = "train" if role == "trained" else "control"
    started = time.monotonic(), time.process_time()
    log = options.out / "tensorboard" / f"{role}-{seed}"
    with (
        open_worlds(options, place, options.ppo.num_envs, "SAME_STEP") as envs,
        tqdm(total=options.frames, unit="frame", desc=f"{role} {seed}", mininterval=5.0) as progress,
    ):
        agent, curve = learn(
            envs, options.frames, seed, options.ppo, device=options.device, log=log, on_frames=progress.update
        )
    took = {"seconds": time.monotonic() - started[0], "processor_seconds": time.process_time() - started[1]}
    agent.about |= {"world": name_place(options, place), "settings": list_settings(options, place)}
    agent.about |= {name: round(value, 1) for name, value in took.items()}
    agent.save(folder)
    save_json(folder / "curve.json", dataclasses.asdict(curve))  # last: it says that the agent is whole
    return load_agent(folder)


def judge_player(options: RLOptions, player: Player, role: str, seed: int, place: str) -> None:
    """Judge a player where it has not been yet; `place` is judge, or train for what is paid there."""
    path = options.judgement_file(role, seed, place)
    if path.is_file():
        return
    count = options.episodes if place == "judge" else options.train_episodes
    first = (JUDGE_SEED if place == "judge" else TRAIN_SEED) + 10_000 * seed
    seeds = range(first, first + count)
    found = {}
    with open_worlds(options, place, min(JUDGED_AT_ONCE, count)) as envs:
        check_player(player, name_place(options, place), envs)
        for mode, greedy in MODES.items():
            if mode == "drawn" or (place == "judge" and role != "random"):
                found[mode] = dataclasses.asdict(judge(player, envs, seeds, greedy=greedy))
    save_json(path, found)


def run(options: RLOptions, command: str = "") -> dict[str, Any]:
    """Let agents learn, judge them, and write the report as often as a seed is done.

    Args:
        options: of the comparison.
        command: command line to keep in the report.

    Returns:
        the content of `report.json`.

    Raises:
        As `check_options`, `learn_or_load` and the writing of files.
    """
    random = RandomAgent(check_options(options))
    about = {"judge_id": options.judge, "settings": options_to_json(options), "command": command}

    players: dict[tuple[str, int], Player] = {}
    for seed in options.chosen:
        for role in ROLES:
            players[role, seed] = random if role == "random" else learn_or_load(options, role, seed)
            judge_player(options, players[role, seed], role, seed, "judge")
        write_report(options.out, options.agents_folder, about)

    if options.agents is None and options.train_episodes:
        for (role, seed), player in players.items():
            judge_player(options, player, role, seed, "train")
    if options.video_episodes:
        make_videos(options, players["trained", options.chosen[0]])
    return write_report(options.out, options.agents_folder, about)


def make_videos(options: RLOptions, player: Player) -> None:
    """Write a video of an agent in each world, where there is none yet."""
    for place in ["judge"] if options.agents is not None else ["judge", "train"]:
        path = options.out / "videos" / f"{place}.mp4"
        if not path.is_file():
            with open_worlds(options, place, 1) as envs:
                record_video(player, envs, range(JUDGE_SEED, JUDGE_SEED + options.video_episodes), path)


def main() -> None:
    """Parse options, compare, print the report."""
    options = parse_options(RLOptions, "python -m train.rl")
    run(options, f"python -m train.rl {shlex.join(sys.argv[1:])}")
    print((options.out / "report.md").read_text())
    print(f"report: {options.out / 'report.md'}")


if __name__ == "__main__":
    run_program(main)
