"""Memories: what a denoiser looks back with.

Owns nothing; each module below is one structure or one part that several share.
"""
