"""Hyperparameters that spare time in tests of all agents, by agent."""

_HNET = {"erasure_steps": 3}
_HNET_REPLAY = {**_HNET, "refresh_steps": 3}
_REPLAY = {"removal_steps": 2, "capacity": 50}
_EPISODES = {**_REPLAY, "segment_examples": 10}
_BUFFERED = {"steps": 4}
_OFFLINE = {"epochs": 1}
QUICK = {
    **dict.fromkeys(("hnet", "hnet-ent", "hnet-online", "uncle"), _HNET),
    **dict.fromkeys(("hnet-r", "hnet-tir"), _HNET_REPLAY),
    **dict.fromkeys(("er", "der", "derpp"), _REPLAY),
    **dict.fromkeys(("agem", "gem"), _EPISODES),
    **dict.fromkeys(("joint", "gdumb"), _OFFLINE),
    **dict.fromkeys(("ascend", "uniform", "reinit-all", "newton"), _BUFFERED),
    "ctr": {"hidden": (12, 10), "width": 8},
    "pall": {"steps": 3, "memory": 10},
}
