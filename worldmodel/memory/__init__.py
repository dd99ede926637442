"""Memories: what a denoiser looks back with.

Owns nothing: `base` says what a memory is, `registry` names those there are, and each other module is one of them or a
part of one.
"""
