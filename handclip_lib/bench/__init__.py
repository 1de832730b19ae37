"""`handclip bench`: how fast the kit is, as ratios that are measured in one run."""
