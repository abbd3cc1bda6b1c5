"""From a video file to its tags over time."""
