"""Step 4 of the tutorial: a task becomes permanent, another is unlearned, and the audit says what was achieved."""

import torch

import clenv

torch.set_num_threads(1)
script = clenv.Script(
    [
        clenv.permanent("digits-0-1", step=300),
        clenv.unlearn("digits-2-3", step=500),
    ]
)
env = clenv.make("clenv/SplitDigits-v0", alpha=0.9, round_length=5, horizon=600, requests=script)

for name in ("hat", "overlay-hat"):
    agent = clenv.make_agent(name, env, seed=0)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    for verdict in clenv.audit(env, agent, progress=False):
        print(f"{name} claims {verdict.claimed.name}, measured {verdict.measured.name}: holds {verdict.holds}")
        print(f"  leaks: {list(verdict.leaks) or 'none found'}")
