"""Looking at rollouts: one HTML page that replays how responses were denoised, or text for a terminal."""
