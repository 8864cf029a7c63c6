"""Learners that learn how to learn: a meta step differentiates through the inner steps it prepares.

They differ in what the outer loop owns: the initial parameters (`c_maml`), gates that depend on the input (`anml`), or
masks over activations and gradients (`meta_mask`; both share `masking`).
"""
