"""Puppet World: a small procedural scene source whose every quantity is known exactly.

Articulated puppets, bouncing balls, a floor or a plain plate, a moving camera. `scene` draws and describes a scene,
`world` renders it and delivers the truth (alpha, parts, depth, joints, camera), `flow`, `surface` and `sound` the rest
of it, and `judge` reads a generated clip back and says whether it shows what its caption asked for.

World frame: metres, y up, the floor at y = 0; puppets face +z at rest. Cameras follow OpenCV (x right, y down, z
forward). Pixel (0, 0) covers [0, 1) x [0, 1): its centre is (0.5, 0.5).
"""
