"""What holds for every baseline: it does something, switched off it is plain training, a memory's update costs a batch.

More worlds and optimisers: test_protection.py, test_er.py, test_der.py, test_gem.py, test_offline.py.
"""

import pytest
import torch
from replay_lives import live, same, world
from torch.utils._python_dispatch import TorchDispatchMode

from clenv.agents.references.finetune import Finetune
from clenv.agents.rehearsal.memory import Archive, Balanced, Reservoir
from clenv.registry import agent_class

CPU = torch.device("cpu")
OFF = {
    "ewc": {"strength": 0.0},
    "ewc-online": {"strength": 0.0},
    "si": {"strength": 0.0},
    "mas": {"strength": 0.0},
    "lwf": {"strength": 0.0},
    "er": {"capacity": 0},
    "der": {"alpha": 0.0},
    "derpp": {"alpha": 0.0, "beta": 0.0},
    "agem": {"capacity": 0},
    "gem": {"capacity": 0},
}
REFERENCES = ("cumulative", "joint", "gdumb", "from-scratch")


@pytest.mark.parametrize("name", [*OFF, *REFERENCES])
def test_it_does_something_and_switched_off_it_is_plain_training(make_tasks, name):
    def lived(cls, **options):
        return live(world(make_tasks(3), paradigm="domain"), cls, learning_rate=0.01, **options)

    plain, on = lived(Finetune), lived(agent_class(name))
    pairs = zip(on.shared, plain.shared, strict=True)
    assert max((one - other).abs().max() for one, other in pairs) > 1e-4
    if name in OFF:
        assert same(lived(agent_class(name), **OFF[name]), plain)


@pytest.mark.parametrize(("name", "steps"), [("from-scratch", 4), ("cumulative", 1)])
def test_at_first_a_reference_is_plain_training(make_tasks, name, steps):
    """Before the first segment ends; as long as everything is the minibatch."""
    agents = []
    for cls in (Finetune, agent_class(name)):
        env = world(make_tasks(3), round_length=5, paradigm="domain")
        agents.append(cls(env.stream_spec, hidden=(8,)))
        for _ in range(steps):
            env.step(agents[-1])
    assert same(*agents)


class Written(TorchDispatchMode):
    """Counts the numbers that torch's operations write: new tensors, and what is changed in place."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"index_copy_", "index_fill_"}:
            self.numbers += args[2].numel() * args[0][:1].numel()
        elif name.endswith("_"):
            self.numbers += args[0].numel()
        elif isinstance(result, torch.Tensor) and all(
            result.data_ptr() != a.data_ptr() for a in args if isinstance(a, torch.Tensor)
        ):
            self.numbers += result.numel()
        return result


def examples(first, count):
    numbers = torch.arange(first, first + count)
    x = numbers[:, None].expand(-1, 6).float()
    return {"x": x, "y": numbers % 3, "task": 0, "outputs": 3, "step": first}


@pytest.mark.parametrize("cls", [Reservoir, Balanced])
def test_an_update_writes_as_much_whatever_the_capacity_and_whatever_came_before(make_tasks, cls):
    spec = world(make_tasks(3), paradigm="domain").stream_spec
    row = 6 + 4  # numbers of an example
    most = []
    for capacity in (40, 4000):
        memory = cls(spec, capacity, CPU, 0, "test")
        counts = []
        for first in range(0, 4 * capacity, 40):
            with Written() as written:
                memory.insert(examples(first, 40))
            counts.append(written.numbers)
        assert memory.size == capacity
        most.append(max(counts))
    assert 0 < most[0] <= most[1] <= 40 * (3 * row + 2)  # selected and written, and where


def test_an_archive_writes_as_much_as_came(make_tasks):
    """Room is made by doubling, which writes everything again, but rarely."""
    archive = Archive(world(make_tasks(3)).stream_spec, 0, CPU)
    with Written() as written:
        for first in range(0, 4000, 4):
            archive.insert(examples(first, 4))
    assert archive.size == 4000
    assert written.numbers <= 4000 * 10 * 10
