"""Pictures of schedules are made of their levels; the code in docs/framework.md runs, and its names are there."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from matplotlib.patches import Rectangle

import worldmodel
from train.pictures import LEVELS, PicturesOptions, draw_pictures, draw_window
from worldmodel.denoiser import Denoiser
from worldmodel.errors import ConfigError, WindowError
from worldmodel.windows import Schedule, Window, fifo_window, outpainting_window

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "framework.md"


def cells(window: Window, steps: int) -> dict[tuple[int, float], tuple[float, ...]]:
    """Return the color of each drawn half cell by (frame, bottom)."""
    (axes,) = draw_window(window, "title", steps).axes
    found = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_height() < 1]
    return {(round(p.get_x()), round(p.get_y(), 3)): p.get_facecolor() for p in found}


def test_each_half_cell_has_the_color_of_its_level() -> None:
    window = fifo_window(4)
    colors = cells(window, 2)
    assert len(colors) == 2 * 2 * 4
    rows = sorted({bottom for _, bottom in colors}, reverse=True)  # before, after, before, after
    for step in range(2):
        for j, (before, after) in enumerate(zip(window.before, window.after, strict=True)):
            frame = 2 + step + j
            assert colors[frame, rows[2 * step]] == pytest.approx(LEVELS(before))
            assert colors[frame, rows[2 * step + 1]] == pytest.approx(LEVELS(after))
    assert colors[3, rows[1]] == colors[3, rows[2]]  # circularity, as one sees it
    assert LEVELS(0.0) != LEVELS(1.0)


def test_arrows_mark_what_enters_and_what_is_finished() -> None:
    (axes,) = draw_window(outpainting_window(5, 2), "title", 1).axes
    places = sorted(text.xy[0] - 0.5 for text in axes.texts if hasattr(text, "xy"))
    assert places == [4, 4, 5, 5, 6, 6]  # frames 2 and 3 are the clean overlap: neither enter nor finish


def test_pictures_are_small_files_named_after_their_schedules(tmp_path: Path) -> None:
    paths = draw_pictures(PicturesOptions(out=tmp_path, schedules=("next", "fifo:5", "fifo:40"), steps=2))
    assert [path.name for path in paths] == ["next.png", "fifo_5.png", "fifo_40.png"]
    for path in paths:
        assert path.stat().st_size < 100_000 and cv2.imread(str(path)).std() > 10


def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WindowError, match="fifo"):
        draw_pictures(PicturesOptions(out=tmp_path, schedules=("fifo",)))
    with pytest.raises(ConfigError, match="at least one schedule"):
        draw_pictures(PicturesOptions(out=tmp_path, schedules=()))
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        draw_pictures(PicturesOptions(out=tmp_path, steps=0))


def code_blocks() -> dict[str, str]:
    """Return the Python blocks of the page by the heading above each."""
    blocks: dict[str, str] = {}
    heading = ""
    for part in re.split(r"^(```python\n.*?^```$)", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
        if part.startswith("```python"):
            assert heading not in blocks
            blocks[heading] = part.removeprefix("```python\n").removesuffix("```")
        elif headings := re.findall(r"^#+ (.*)$", part, re.MULTILINE):
            heading = headings[-1]
    return blocks


def run_block(heading: str) -> dict[str, Any]:
    source = code_blocks()[heading]
    assert len(source.splitlines()) < 30
    names: dict[str, Any] = {}
    exec(compile(source, f"docs/framework.md: {heading}", "exec"), names)
    return names


@pytest.mark.slow
def test_the_schedule_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_block("A schedule of your own")
    schedule = names["schedule"]
    assert isinstance(schedule, Schedule) and schedule.window.size == 5
    assert names["dreamt"].shape == (1, 8, 64, 64, 3) and names["dreamt"].float().std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["slow_finish.png"]


def test_the_compressor_of_the_page_runs_and_its_cache_agrees() -> None:
    names = run_block("A compressor of your own")
    denoiser = names["denoiser"]
    assert isinstance(denoiser, Denoiser) and type(denoiser.memories["slots"].compressor) is names["MeanCompressor"]
    assert names["clean"].std() > 0.1
    assert torch.allclose(names["clean"], names["cached"], atol=1e-5)
    cache = denoiser.new_cache(1)
    with torch.no_grad():
        _, written = denoiser(names["frames"][:4], cache=cache)
        cache.commit(*written, num_frames=4)
        behind, _ = denoiser(names["frames"][4:], cache=cache)
    assert torch.allclose(names["clean"][:, 4:], behind.clean, atol=1e-5)


def test_every_picture_and_program_of_the_page_exists() -> None:
    text = PAGE.read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) >= 5
    for name in pictures:
        assert (DOCS / name).is_file() and (DOCS / name).stat().st_size < 100_000
    for name in set(re.findall(r"(?:worldmodel|train|envs)/[\w/]+\.py", text)):
        assert (DOCS.parent / name).is_file(), name


def find(name: str) -> Any:
    """Return a module, or what a module or a class of it has, by its dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        place, _, last = name.rpartition(".")
        owner = find(place)
        if dataclasses.is_dataclass(owner) and last in {field.name for field in dataclasses.fields(owner)}:
            return None
        return getattr(owner, last)


def test_every_name_of_the_page_is_there() -> None:
    text = PAGE.read_text()
    names = set(re.findall(r"(?:`|python -m )((?:train|worldmodel)\.[A-Za-z_.]*[A-Za-z_])", text))
    assert len(names) > 25
    for name in names:
        find(name)
    # A class by its own name is one of the package, wherever it is defined.
    modules = [find(module.name) for module in pkgutil.walk_packages(worldmodel.__path__, "worldmodel.")]
    classes = {k: v for module in modules for k, v in vars(module).items() if isinstance(v, type)}
    members = set(re.findall(r"`([A-Z]\w+)\.([a-z]\w+)", text))
    assert len(members) > 10
    for owner, last in members:
        find(f"{classes[owner].__module__}.{owner}.{last}")
