"""Learners that keep their ability to learn: networks trained for long learn new tasks ever more slowly.

`cbp` draws units anew that are of little use. Nothing here protects what was learned.
"""
