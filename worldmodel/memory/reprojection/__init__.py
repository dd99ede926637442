"""Pixel-precise memory: past frames with depth and pose, warped into the view of a coming frame.

`keyframes` is what is kept of past frames, and which; `costs` says which source shows a pixel best; `choice` picks the
few keyframes that show most of a coming view; `surfaces` finds where the rays of its pixels end in them, and `warp`
makes the picture of that. Knows no network and no world.

What was seen from the very place of the coming view goes before all else: between such views there is no parallax, so
that they need no depth to be turned into one another, and nothing can stand before what they show.
"""
