"""Unlearning as a wrapper of any learner (`composed`): it serves the requests, the learner does the rest.

They differ in what a request costs and reaches: learning anew without the visits (`retrain`, exact), taking back their
updates (`subtract`), steps up the loss or fresh weights (`buffered`), nothing at all.
"""
