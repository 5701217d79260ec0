"""The tiny world (scenes, their language) and the data layer that feeds training."""
