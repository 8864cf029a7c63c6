"""Learners that keep examples (`memory`) and learn from them again (`rehearsing`).

They differ in what a kept example does: it is learned again (`er`), holds the answer to what it was (`der`), forbids
steps that raise its loss (`gem`, `agem`), is all there is to learn from (`gdumb`), or fills a network of its own until
its task is permanent (`clpu_derpp`).
"""
