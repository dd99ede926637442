"""Studies and measures of worlds: functions of frames and of what a model dreams. Knows no files and no programs."""
