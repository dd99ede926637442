"""The world model: frames in, frames out.

Owns codec, denoiser, sampler, memory and the `WorldModel` that plays them. Knows no game, no file of episodes, no
screen.
"""

__version__ = "0.1.0"
