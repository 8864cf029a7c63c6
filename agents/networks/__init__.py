"""What families share: backbones, optimisers, and the protection of weights from updates."""
