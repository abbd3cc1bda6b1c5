"""From video files to frame features."""
