"""The task families, one file a family. Ids are registered here; factories are imported when they are used."""

from clenv.registry import register

if __name__ != "clenv.scenarios":
    raise ImportError(f"import this package as clenv.scenarios, not as {__name__}")

register("clenv/TwoGaussians-v0", "clenv.scenarios.two_gaussians:two_gaussians", schedule=(0, 1), round_length=100)
