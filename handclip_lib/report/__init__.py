"""Run folders, figures, executed notebooks, study tables."""
