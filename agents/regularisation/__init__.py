"""Learners held to where a segment of the stream ended (`consolidating`), by a penalty beside the loss.

They differ in what is held and how firmly: weights by Fisher information (`ewc`), by the path of the gradient (`si`),
by the sensitivity of the answers (`mas`), or all alike (`l2`; all four by `anchoring`); or the answers themselves
(`lwf`).
"""
