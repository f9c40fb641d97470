"""Networks of our own: interspatial attention, the diffusion transformer and the video VAE built around it."""
