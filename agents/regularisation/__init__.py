"""Learners held to where a segment of the stream ended (`consolidating`), by a penalty beside the loss.

They differ in what is held and how firmly: weights by Fisher information (`ewc`), by the path of the gradient (`si`) or
by the sensitivity of the answers (`mas`; all three by `anchoring`), or the answers themselves (`lwf`).
"""
