"""What is measured beside the score: what unlearning achieved, against agents that never saw what was removed."""
