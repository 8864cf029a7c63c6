"""Learners that give each task a mask over one shared network."""
