"""Figures, tables and pages made from the files that a run leaves behind."""
