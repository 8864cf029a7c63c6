"""The bench: many agents, scenarios and seeds; what came of them, and whether a difference is real."""
