"""Learners whose networks are generated, one a task, by a network that is held to what it generated before.

`hypernetwork` is the generator and `hnet` the method, told the task. The others find the task by themselves: by the
entropy of the answers (`hnet_inferred`), by a plain network kept by replay (`hnet_recognition`), online by the loss
(`hnet_online`); `hnet_replay` generates examples instead of networks, with the same protection (`replay_vae`).
"""
