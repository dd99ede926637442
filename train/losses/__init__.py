"""Losses of training programs, other than the denoiser's own."""
