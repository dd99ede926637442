"""What a user installs, and which build of PyTorch `make setup` picks for them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "dev" / "bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for pip: nothing is installed, the commands are kept; Linux without a GPU or PyTorch."""
    kept: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "run", lambda command, advice: kept.append(command[1:]))
    monkeypatch.setattr(bootstrap.platform, "system", lambda: "Linux")
    monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: None)
    monkeypatch.setattr(bootstrap, "find_cpu_build", lambda python: ["torch==2.13.0+cpu"])
    return kept


def put_wheel(folder: Path, version: str) -> None:
    """Write an empty torch wheel that pip accepts."""
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(("version", "found"), [("98.0+cpu", ["torch==98.0+cpu"]), ("98.0", None), ("2.0+cpu", None)])
def test_cpu_wheel_among_pips_own_links_is_found(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, found: list[str] | None
) -> None:
    pytest.importorskip("pip")
    put_wheel(tmp_path, version)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(bootstrap, "CPU_SOURCES", bootstrap.CPU_SOURCES[:1])  # the other one needs the network
    assert bootstrap.find_cpu_build(sys.executable) == found


@pytest.mark.parametrize(
    ("build", "has_gpu", "installs"),
    [
        ("auto", False, "torch==2.13.0+cpu"),
        ("auto", True, "torch>=2.9"),
        ("cpu", True, "torch==2.13.0+cpu"),
        ("cuda", False, "torch>=2.9"),
    ],
)
def test_build_follows_the_gpu_unless_asked_for(
    bootstrap: ModuleType,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    build: str,
    has_gpu: bool,
    installs: str,
) -> None:
    monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: has_gpu)
    bootstrap.install_torch("python", build)
    assert commands == [["-m", "pip", "install", installs]]


@pytest.mark.parametrize(
    ("present", "build", "stays"),
    [
        ("2.13.0+cpu", "auto", True),
        ("2.13.0+cpu", "cpu", True),
        ("2.15.0", "cpu", True),
        ("2.10.0+cu128", "cuda", True),
        ("2.13.0+cpu", "cuda", False),
        ("2.8.1+cpu", "auto", False),
    ],
)
def test_pytorch_that_fits_is_left_alone(
    bootstrap: ModuleType,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    present: str,
    build: str,
    stays: bool,
) -> None:
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: present)
    bootstrap.install_torch("python", build)
    assert (commands == []) == stays


def test_no_cpu_build_in_reach_is_told(
    bootstrap: ModuleType,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bootstrap, "find_cpu_build", lambda python: None)
    bootstrap.install_torch("python", "auto")
    assert commands == [["-m", "pip", "install", "torch>=2.9"]]
    assert "several GB" in capsys.readouterr().out
    with pytest.raises(bootstrap.SetupError, match="TORCH=cuda"):
        bootstrap.install_torch("python", "cpu")


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"running": (3, 11), "python3.12": (3, 12)}, "running"),
        ({"running": (3, 13), "python3.12": (3, 12)}, "python3.12"),
        ({"running": (3, 9), "python3.12": None, "python3.13": (3, 13)}, "python3.13"),
        ({"running": (3, 14)}, "running"),
    ],
)
def test_interpreter_is_new_enough_and_has_labmaze_where_possible(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, versions: dict[str, tuple[int, int] | None], chosen: str
) -> None:
    monkeypatch.setattr(bootstrap.sys, "executable", "running")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name if name in versions else None)
    monkeypatch.setattr(bootstrap, "python_version", versions.get)
    assert bootstrap.find_python() == chosen


def test_old_python_is_refused(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    monkeypatch.setattr(bootstrap, "python_version", lambda path: (3, 10))
    with pytest.raises(bootstrap.SetupError, match="3.11"):
        bootstrap.find_python()


@pytest.mark.parametrize("python", ["no-such-python", "old-python"])
def test_interpreter_asked_for_that_will_not_do_leaves_no_folder(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str
) -> None:
    monkeypatch.setattr(bootstrap, "python_version", {"old-python": (3, 10)}.get)
    with pytest.raises(bootstrap.SetupError, match=python):
        bootstrap.prepare_venv(tmp_path / ".venv", python)
    assert not (tmp_path / ".venv").exists()


def test_setup_asks_for_the_pytorch_that_the_package_needs(bootstrap: ModuleType) -> None:
    assert bootstrap.TORCH in PROJECT["dependencies"]


def test_wheel_carries_weights_and_player_and_leaves_the_workshop_out(tmp_path: Path) -> None:
    wheel_builder: Callable[[str], object] = pytest.importorskip("hatchling.builders.wheel").WheelBuilder
    tree, out = tmp_path / "tree", tmp_path / "out"
    empty = ("worldmodel/__init__.py", "envs/worlds/__init__.py", "train/record.py", "play.py", "README.md")
    for name in (*empty, "envs/player/page/page.js"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    for name in ("worldmodel/assets/labmaze/codec.safetensors", "tests/test_x.py", "dev/LOG.md", "runs/a.mp4"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x")
    (tree / ".gitignore").write_text("*.safetensors\n")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (path,) = wheel_builder(str(tree)).build(directory=str(out), versions=["standard"])  # type: ignore[attr-defined]
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (entry_points,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert names == {
        "worldmodel/__init__.py",
        "worldmodel/assets/labmaze/codec.safetensors",
        "envs/worlds/__init__.py",
        "envs/player/page/page.js",
        "train/record.py",
        "play.py",
    }
    assert "worldmodel-play = play:main" in entry_points


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("worldmodel", "gymnasium pygame h5py mujoco labmaze envs train"),
        ("envs", "mujoco labmaze tensorboard aiohttp train"),
    ],
)
def test_importing_a_package_does_not_need_its_optional_ones(package: str, absent: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({absent.split()!r}))\n"  # None there makes an import fail
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["play", "test", "check"])
def test_every_command_sets_up_first_and_only_once(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "dev/bootstrap.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    make = [
        "env",
        "-u",
        "MAKEFLAGS",
        "-u",
        "MAKELEVEL",
        "make",
        "--no-print-directory",
        "--dry-run",
        target,
        "TORCH=cpu",
        "ARGS=--seed 3",
    ]

    first = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert first.startswith("python3 dev/bootstrap.py --torch cpu")

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".setup-cpu").touch()
    second = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert second and "bootstrap" not in second
    assert ("play.py --seed 3" in second) == (target == "play")
