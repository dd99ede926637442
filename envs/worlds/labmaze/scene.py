"""Pictures of a maze: palettes, the MJCF model and the renderer.

Owns: which texture files a palette has, the model that is compiled once for a maze size, dressing it as another maze
(indices and flags only, so a reset compiles and uploads nothing), and the GL context. Does not know seeds, rewards,
actions or Gymnasium. Textures and skies are DeepMind Lab's, CC BY 4.0, read from the labmaze package.
"""

import contextlib
import functools
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from envs.worlds.labmaze.constants import VIEW_DEG
from envs.worlds.labmaze.maze import Maze
from worldmodel.errors import ConfigError, MissingPackageError, StateError

PALETTE_NAMES = ("classic", "full", "plain")
EYE_HEIGHT = 0.45
SKY_DEPTH = 200.0  # cells; far enough that a walk through a maze moves the sky by less than a pixel
# Saturated and bright as no wall is; the first eight targets have a color of their own, then the colors repeat.
TARGET_COLORS = ("ff00c8", "00ffff", "ffff00", "00ff2a", "ffffff", "ff3000", "9a5cff", "ffb0d8")
TARGET_RADIUS = 0.16
TARGET_HEIGHT = 0.36
_SHOWN, _HIDDEN = 0, 5
_LOST: list[Any] = []  # renderers that could not be freed
# A cube map lies on a box with its pictures turned differently on each side; these turns set all four sides upright.
_UPRIGHT_TURNS = {"right": 1, "left": 3, "up": 2, "down": 0, "front": 0, "back": 0}
_BAD_ACCESS = 0x3002  # of EGL: this thread has a current context of another library
_GL_IS_TAKEN = (
    "another library holds OpenGL in this thread, such as a window of pygame or GLFW: make and step the environment in "
    "a thread or process of its own; or, for pygame without OPENGL, set SDL_FRAMEBUFFER_ACCELERATION=0 before its "
    "window opens"
)
_NO_GL = (
    "no OpenGL for rendering with MUJOCO_GL={backend!r} ({error}); on Debian or Ubuntu: apt-get install libegl1 "
    "libgl1-mesa-dri, or set MUJOCO_GL=osmesa and: apt-get install libosmesa6"
)
_NO_PACKAGE = "{error}; the LabMaze world needs: pip install mujoco labmaze"
_gl_process: int | None = None  # the process that began to use OpenGL, or the one that it was forked from


@dataclass(frozen=True)
class Palette:
    """Textures of a world; an entry is "style/name" of labmaze.assets, or a flat color "#rrggbb"."""

    walls: tuple[str, ...]
    floors: tuple[str, ...]
    sky: str


_CLASSIC = Palette(
    walls=(
        "style_05/red",
        "style_03/orange_bright",
        "style_01/yellow",
        "style_04/green",
        "style_02/lgreen",
        "style_02/dblue",
        "style_02/purple",
        "style_03/gray_bright",
    ),
    floors=("style_05/orange_bright", "style_01/blue", "style_02/orange"),
    sky="sky_03",
)
_PLAIN = Palette(
    walls=("#d03030", "#f08a1c", "#e8d020", "#3a8a2c", "#20d8b0", "#2440b0", "#a050e0", "#b8b8b8"),
    floors=("#e8c8a0", "#405868", "#7a4a20"),
    sky="#78b8ff",
)


def find_palette(name: str) -> Palette:
    """Return the palette called `name`.

    Raises:
        ConfigError: no such palette.
        MissingPackageError: `full` lists labmaze's files and labmaze is not installed.
    """
    if name == "classic":
        return _CLASSIC
    if name == "plain":
        return _PLAIN
    if name != "full":
        raise ConfigError(f"palette {name!r} is unknown; use one of {', '.join(PALETTE_NAMES)}")
    assets = _labmaze_assets()
    return Palette(
        walls=tuple(f"{style}/{texture}" for style, textures in assets.WALL_TEXTURES.items() for texture in textures),
        floors=tuple(f"{style}/{texture}" for style, textures in assets.FLOOR_TEXTURES.items() for texture in textures),
        sky="sky_03",
    )


class MazeRenderer:
    """Draws first-person frames of mazes of one size.

    Args:
        num_cells: rows and columns of the mazes.
        num_targets: targets of each maze.
        palette: a palette name.
        image_size: height and width of a frame in pixels.

    Raises:
        ConfigError: unknown palette.
        MissingPackageError: mujoco, labmaze or OpenGL is not installed.
        StateError: another library holds OpenGL in this thread.
    """

    def __init__(self, num_cells: int, num_targets: int, palette: str, image_size: int) -> None:
        colors = find_palette(palette)
        mujoco = _import_mujoco()
        texture_size = min(max(2 * image_size, 64), 256)
        files: dict[str, bytes] = {}
        xml = _build_mjcf(colors, num_cells, num_targets, image_size, texture_size, files)

        self._mujoco = mujoco
        self._num_cells = num_cells
        self._model = mujoco.MjModel.from_xml_string(xml, files)
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)

        self._wall_geoms = np.arange(num_cells**2).reshape(num_cells, num_cells)
        self._floor_geoms = self._wall_geoms + num_cells**2
        self._target_geoms = np.arange(num_targets) + 2 * num_cells**2
        self._num_walls = len(colors.walls)

        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[_SHOWN] = 1

        self._scene = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 8)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_FOG", "mjRND_HAZE"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0

        self._camera = mujoco.MjvCamera()
        self._camera.distance = 1.0
        self._camera.elevation = 0.0

        self._rect = mujoco.MjrRect(0, 0, image_size, image_size)
        self._pixels = np.zeros((image_size, image_size, 3), np.uint8)
        self._depths = np.zeros((image_size, image_size), np.float32)

        self._gl: Any = None
        self._owner = os.getpid(), threading.get_ident()
        try:
            self._gl = mujoco.GLContext(image_size, image_size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
            self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # floats are dense at 0: precise far away
            # A renderer that is dropped unclosed must not free its pictures in the context of another one.
            self._free = weakref.finalize(self, _free_context, self._gl, self._context)
            self._free.atexit = False
        except _gl_errors(ImportError, RuntimeError, AttributeError, mujoco.FatalError) as error:
            raise _explain(error) from error

    def dress(self, maze: Maze) -> None:
        """Show `maze`, with every target present."""
        model, is_wall = self._model, maze.layout == 1
        # A block with walls on all sides is never seen.
        padded = np.pad(is_wall, 1, constant_values=True)
        is_buried = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        model.geom_group[self._wall_geoms] = np.where(is_wall & ~is_buried, _SHOWN, _HIDDEN)
        model.geom_group[self._floor_geoms] = np.where(is_wall, _HIDDEN, _SHOWN)
        model.geom_matid[self._wall_geoms] = np.where(is_wall, maze.wall_textures, 0)
        model.geom_matid[self._floor_geoms] = self._num_walls + np.where(is_wall, 0, maze.floor_textures)
        self._data.geom_xpos[self._target_geoms, :2] = maze.targets
        self.show_targets(np.ones(len(maze.targets), bool))

    def show_targets(self, is_shown: np.ndarray) -> None:
        """Show the targets where bool (num_targets,) `is_shown` holds and hide the others."""
        self._model.geom_group[self._target_geoms] = np.where(is_shown, _SHOWN, _HIDDEN)
        self._mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._camera,
            self._mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )

    def render(self, x: float, y: float, heading_deg: float) -> np.ndarray:
        """Return the frame seen from x, y in cell units, looking along `heading_deg`: uint8 (H, W, 3), a new array.

        Raises:
            StateError: the renderer is closed, of another thread, or its OpenGL display is gone.
        """
        self._draw(x, y, heading_deg)
        self._mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        return np.ascontiguousarray(self._pixels[::-1])

    def render_depth(self, x: float, y: float, heading_deg: float) -> np.ndarray:
        """Return how far away is what `render` shows in each pixel: float32 (H, W), a new array.

        Returns:
            cells along the heading (not along the ray), 0.05 and more; `SKY_DEPTH` for the sky.

        Raises:
            StateError: as `render`.
        """
        skybox = self._mujoco.mjtRndFlag.mjRND_SKYBOX
        self._scene.flags[skybox] = 0  # it is drawn as a box, with depths of its own
        try:
            self._draw(x, y, heading_deg)
        finally:
            self._scene.flags[skybox] = 1
        self._mujoco.mjr_readPixels(None, self._depths, self._rect, self._context)
        near, far = (scale * self._model.stat.extent for scale in (self._model.vis.map.znear, self._model.vis.map.zfar))
        # The depth buffer holds 1 at the near plane and 0 at the far one, linear in the inverse of the distance.
        buffer = self._depths[::-1].astype(np.float64)
        depths = near * far / (near + buffer * (far - near))
        return np.where(buffer > 0, depths, SKY_DEPTH).astype(np.float32)

    def _draw(self, x: float, y: float, heading_deg: float) -> None:
        if self._gl is None:
            raise StateError("the environment is closed; make a new one")
        self._check_owner()
        mujoco, heading = self._mujoco, np.deg2rad(heading_deg)
        self._camera.lookat[:] = (x + np.cos(heading), y + np.sin(heading), EYE_HEIGHT)
        self._camera.azimuth = heading_deg
        try:
            self._gl.make_current()
        except _gl_errors(RuntimeError) as error:
            if _is_taken(error):
                raise StateError(_GL_IS_TAKEN) from error
            reason = " ".join(str(error).split())
            raise StateError(f"the OpenGL context of this environment is gone ({reason}); make a new one") from error
        mujoco.mjv_updateCamera(self._model, self._data, self._camera, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context)

    def close(self) -> None:
        """Free the GL context; calling it again does nothing.

        Raises:
            StateError: called from another thread than made it; then it stays open.
        """
        if self._gl is not None:
            self._check_owner()
            self._gl = None
            self._free()

    def _check_owner(self) -> None:
        process, thread = self._owner
        if os.getpid() != process:
            raise StateError(
                "this environment was made before its process was forked, and OpenGL does not survive that: make it in "
                "the process that steps it"
            )
        if threading.get_ident() != thread:
            raise StateError(
                "OpenGL belongs to the thread in which an environment was made: make, step and close it in one thread"
            )


def must_draw_elsewhere() -> bool:
    """Whether this process was forked from one that used OpenGL: here it would wait for ever."""
    return _gl_process not in (None, os.getpid())


def _free_context(gl: Any, context: Any) -> None:
    """Free what a context holds, within it, and it; then let the context go on that was current before, if any."""
    if must_draw_elsewhere():
        _LOST.append((gl, context))  # it is the parent's
        return
    try:
        with gl.as_current() if hasattr(gl, "as_current") else contextlib.nullcontext(gl.make_current()):
            context.free()
        gl.free()
    except _gl_errors(RuntimeError):
        # Dropped in another thread, or after its display: nobody can free it, and freeing elsewhere would break others.
        _LOST.append(context)


def _gl_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return `others` and what PyOpenGL raises, where it is there: its errors are plain exceptions."""
    try:
        from OpenGL.error import Error
    except ImportError:
        return others
    return (*others, Error)


def _import_mujoco() -> Any:
    global _gl_process
    if sys.platform == "linux":  # elsewhere mujoco's own choice works without a display
        os.environ.setdefault("MUJOCO_GL", "egl")
        # A window of pygame would draw by GLX in this thread, and X ends a process that uses both there.
        os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")
    _gl_process = _gl_process or os.getpid()
    try:
        import mujoco

        # Missing packages and missing GL libraries are told apart: the context module loads the latter.
        _ = mujoco.GLContext
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            raise MissingPackageError(_NO_PACKAGE.format(error=error)) from error
        raise _no_gl(error) from error
    except (AttributeError, RuntimeError, OSError) as error:
        raise _no_gl(error) from error
    return mujoco


def _is_taken(error: Exception) -> bool:
    """Whether an error says that another library holds OpenGL in this thread."""
    return getattr(error, "err", None) == _BAD_ACCESS


def _explain(error: Exception) -> Exception:
    """Return the error of this project for one of OpenGL."""
    return StateError(_GL_IS_TAKEN) if _is_taken(error) else _no_gl(error)


def _no_gl(error: Exception) -> MissingPackageError:
    reason = " ".join(str(error).split())
    return MissingPackageError(_NO_GL.format(backend=os.environ.get("MUJOCO_GL", ""), error=reason))


def _labmaze_assets() -> Any:
    try:
        from labmaze import assets
    except ImportError as error:
        raise MissingPackageError(_NO_PACKAGE.format(error=error)) from error
    return assets


def _texture_path(kind: str, entry: str) -> str:
    style, name = entry.split("/")
    assets = _labmaze_assets()
    find = assets.get_wall_texture_paths if kind == "wall" else assets.get_floor_texture_paths
    return str(find(style)[name])


@functools.lru_cache(maxsize=256)
def _small_png(path: str, size: int, quarter_turns: int = 0) -> bytes:
    """Return the picture at `path` as size x size PNG bytes, turned counter-clockwise; kept: originals are large."""
    picture = cv2.imread(path)
    if picture is None:
        raise MissingPackageError(
            f"labmaze's texture {path} is missing; reinstall it: pip install --force-reinstall labmaze"
        )
    scaled = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", np.ascontiguousarray(np.rot90(scaled, quarter_turns)))[1].tobytes()


def _rgb(color: str) -> str:
    digits = color.removeprefix("#")
    return " ".join(f"{int(digits[i : i + 2], 16) / 255:.4f}" for i in (0, 2, 4))


def _build_mjcf(
    palette: Palette, num_cells: int, num_targets: int, image_size: int, texture_size: int, files: dict[str, bytes]
) -> str:
    """Return the model: one wall box and one floor plane for every cell, then the targets; adds textures to `files`."""
    assets: list[str] = []
    for kind, entries in (("wall", palette.walls), ("floor", palette.floors)):
        for index, entry in enumerate(entries):
            name = f"{kind}{index}"
            if entry.startswith("#"):
                assets.append(f'<material name="{name}" rgba="{_rgb(entry)} 1" specular="0" shininess="0"/>')
                continue
            path = _texture_path(kind, entry)
            if kind == "floor":
                files[f"{name}.png"] = _small_png(path, texture_size)
                assets.append(f'<texture name="{name}" type="2d" file="{name}.png"/>')
            else:
                for face, quarter_turns in _UPRIGHT_TURNS.items():
                    files[f"{name}_{face}.png"] = _small_png(path, texture_size, quarter_turns)
                sources = " ".join(f'file{face}="{name}_{face}.png"' for face in _UPRIGHT_TURNS)
                assets.append(f'<texture name="{name}" type="cube" {sources}/>')
            assets.append(f'<material name="{name}" texture="{name}" specular="0" shininess="0"/>')

    assets.append(_sky(palette.sky, texture_size, files))

    geoms: list[str] = []
    centers = [(c + 0.5, num_cells - 1 - r + 0.5) for r in range(num_cells) for c in range(num_cells)]
    geoms += [f'<geom type="box" pos="{x} {y} .5" size=".5 .5 .5" material="wall0"/>' for x, y in centers]
    geoms += [f'<geom type="plane" pos="{x} {y} 0" size=".5 .5 2" material="floor0"/>' for x, y in centers]

    for index in range(num_targets):
        name, color = f"target{index}", TARGET_COLORS[index % len(TARGET_COLORS)]
        assets.append(f'<material name="{name}" rgba="{_rgb(color)} 1" emission=".35" specular="0" shininess="0"/>')
        geoms.append(f'<geom type="sphere" pos="0 0 {TARGET_HEIGHT}" size="{TARGET_RADIUS}" material="{name}"/>')
    return f"""<mujoco>
  <statistic extent="1" center="0 0 0"/>
  <visual>
    <global offwidth="{image_size}" offheight="{image_size}" fovy="{VIEW_DEG}"/>
    <quality offsamples="0" shadowsize="0" numslices="16" numstacks="12" numquads="1"/>
    <map znear="0.05" zfar="{2 * num_cells}"/>
    <headlight ambient=".72 .72 .72" diffuse="0 0 0" specular="0 0 0"/>
  </visual>
  <asset>{"".join(assets)}</asset>
  <worldbody>
    <light directional="true" dir="1 .5 -.4" diffuse=".3 .3 .3" specular="0 0 0" castshadow="false"/>
    <light directional="true" dir="-.5 -.2 -1" diffuse=".16 .16 .16" specular="0 0 0" castshadow="false"/>
    {"".join(geoms)}
  </worldbody>
</mujoco>"""


def _sky(sky: str, texture_size: int, files: dict[str, bytes]) -> str:
    if sky.startswith("#"):
        colors = f'rgb1="{_rgb(sky)}" rgb2="{_rgb(sky)}"'
        return f'<texture name="sky" type="skybox" builtin="flat" {colors} width="8" height="48"/>'
    faces = _labmaze_assets().get_sky_texture_paths(sky)._asdict()
    for face, path in faces.items():
        files[f"sky_{face}.png"] = _small_png(path, texture_size)
    sources = " ".join(f'file{face}="sky_{face}.png"' for face in faces)
    return f'<texture name="sky" type="skybox" {sources}/>'
