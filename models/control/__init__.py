"""Control of what a video shows: bodies and cameras in one 3D frame."""
