"""Names of scenarios and agents: scenarios live in Gymnasium's registry, agents in a table beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any, TypeVar, overload

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.envs.registration import registry as gymnasium_registry
from gymnasium.vector import VectorEnv

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, SettingsError, UnknownNameError, nearest
from clenv.herd import Herd
from clenv.paths import import_module, imported
from clenv.settings import Settings, StreamSpec
from clenv.task import Scenario, Task
from clenv.vector import ContinualVectorEnv

Factory = Callable[..., Scenario | Sequence[Task]]
FactoryT = TypeVar("FactoryT", bound=Factory)
_ENTRY_POINT, _VECTOR_ENTRY_POINT = "clenv.registry:create", "clenv.registry:create_vec"

_local_factories: dict[str, Factory] = {}  # factories that no import path leads to, by environment id
_agents: dict[str, str | type[Agent]] = {}


# Scenarios


@overload
def register(env_id: str, factory: FactoryT, **defaults: Any) -> FactoryT: ...
@overload
def register(env_id: str, factory: str, **defaults: Any) -> str: ...
@overload
def register(env_id: str, factory: None = None, **defaults: Any) -> Callable[[FactoryT], FactoryT]: ...
def register(env_id: str, factory: Factory | str | None = None, **defaults: Any) -> Any:
    """Register a scenario under a Gymnasium id; also a decorator.

    Args:
        env_id: ``namespace/Name-vN``.
        factory: A function that returns tasks or a `Scenario`, or its path ``module:function``.
        **defaults: Settings of the stream and arguments of the factory.

    Returns:
        The factory.

    Example:
        >>> @register("mylab/Lines-v0", horizon=100)
        ... def lines(slope: float = 1.0): ...
    """
    if factory is None:
        return lambda made: register(env_id, made, **defaults)
    path = factory if isinstance(factory, str) else _path(env_id, factory)
    gymnasium.register(
        env_id,
        entry_point=_ENTRY_POINT,
        vector_entry_point=_VECTOR_ENTRY_POINT,
        kwargs={"factory": path, **defaults},
        disable_env_checker=True,  # it would complain that an agent's observations stay tensors
    )
    return factory


def _path(env_id: str, factory: Factory) -> str:
    name = getattr(factory, "__qualname__", "<>")
    if "<" in name or not hasattr(factory, "__module__"):
        _local_factories[env_id] = factory
        return f"local:{env_id}"
    if factory.__module__ == "__main__":
        _local_factories[env_id] = factory
        return f"__main__:{name}"
    return f"{factory.__module__}:{name}"


def _resolve(path: str) -> Any:
    """Return what a path leads to; local functions are known to their own process only."""
    module, _, name = path.partition(":")
    if module != "local":
        return imported(path)
    if name not in _local_factories:
        raise UnknownNameError(f"{name} was registered with a local function, which only its own process knows")
    return _local_factories[name]


def create(*, factory: str, render_mode: Any = None, **options: Any) -> ContinualEnv:
    """Make an environment from a factory's path, settings and factory arguments; Gymnasium calls this.

    Raises:
        SettingsError: An option is neither a setting nor an argument of the factory.
    """
    return ContinualEnv(*_made(factory, options), render_mode=render_mode)


def create_vec(
    *, factory: str, num_envs: int | None = None, seeds: Sequence[int] | None = None, **options: Any
) -> ContinualVectorEnv:
    """Make a vector environment; Gymnasium calls this, and `make_vec`.

    Raises:
        SettingsError: As for `create`; or there are not as many seeds as environments.
    """
    options = {name: value for name, value in options.items() if name != "render_mode" or value is not None}
    seeds = range(1 if num_envs is None else num_envs) if seeds is None else seeds
    if num_envs not in {None, 1, len(seeds)}:  # 1 is what Gymnasium says if nobody says anything
        raise SettingsError(f"num_envs={num_envs}, but {len(seeds)} seeds: expected as many")
    scenario, settings = _made(factory, options)
    return ContinualVectorEnv(scenario, seeds, settings)


def _made(factory: str, options: Mapping[str, Any]) -> tuple[Scenario | Sequence[Task], Settings]:
    """Return what a factory makes, and settings."""
    function = _resolve(factory)
    arguments = factory_arguments(function)
    for name in options:
        if name not in Settings.names() and name not in arguments:
            raise SettingsError(
                f"there is no setting or scenario argument {name!r}.{nearest(name, [*Settings.names(), *arguments])}"
            )
    settings = _settings({k: v for k, v in options.items() if k in Settings.names()})
    return function(**{k: v for k, v in options.items() if k in arguments}), settings


def _settings(changes: Mapping[str, Any]) -> Settings:
    """Return settings, with the tasks of a scenario that is named as out of distribution."""
    settings = Settings().updated(**changes)
    if isinstance(settings.ood_tasks, str):
        settings = replace(settings, ood_tasks=tuple(_scenario(settings.ood_tasks)))
    return settings


def _tasks(given: Any) -> Scenario | Sequence[Task]:
    """Return tasks, or a scenario, that a user hands over.

    Raises:
        SettingsError: It is something else.
    """
    if isinstance(given, Scenario):
        return given
    if isinstance(given, Sequence) and all(isinstance(task, Task) for task in given):
        return given
    kinds = {type(task).__name__ for task in given if not isinstance(task, Task)} if isinstance(given, Sequence) else ()
    inside = f" of {', '.join(sorted(kinds))}" if kinds else ""
    raise SettingsError(
        f"make was given a {type(given).__name__}{inside}: expected the id of a scenario, a list of tasks (see "
        "clenv.scenarios.split), or a Scenario"
    )


def factory_arguments(factory: Factory) -> dict[str, inspect.Parameter]:
    """Return the arguments of a factory, by name."""
    return dict(inspect.signature(factory).parameters)


def _scenario(env_id: str) -> list[Task]:
    """Return the tasks of a registered scenario with its default arguments."""
    spec = scenario_spec(env_id)
    function = _resolve(spec.kwargs["factory"])
    arguments = factory_arguments(function)
    made = function(**{k: v for k, v in spec.kwargs.items() if k in arguments})
    tasks = made.tasks if isinstance(made, Scenario) else made
    if not isinstance(tasks, Sequence):
        raise SettingsError(f"ood_tasks={env_id!r} samples endless contexts: expected a finite scenario")
    return list(tasks)


def scenario_spec(env_id: str) -> EnvSpec:
    """Return the registration of a scenario, loading installed plugins (group ``clenv.scenarios``) if need be.

    Args:
        env_id: Gymnasium id; ``module:id`` imports the module that registers it first.

    Raises:
        gymnasium.error.UnregisteredEnv: There is no such id; the message names the nearest.
        UnknownNameError: The id is registered, but is no scenario of clenv.
    """
    module, _, env_id = env_id.rpartition(":")
    if module:
        import_module(module)
    if env_id not in gymnasium_registry:
        for plugin in entry_points(group="clenv.scenarios"):
            plugin.load()
    spec = gymnasium.spec(env_id)
    if spec.entry_point != _ENTRY_POINT:
        raise UnknownNameError(f"{env_id} is a Gymnasium environment, but not a clenv scenario")
    return spec


def scenario_factory(env_id: str) -> Factory:
    """Return the factory of a registered scenario."""
    factory: Factory = _resolve(scenario_spec(env_id).kwargs["factory"])
    return factory


def make(scenario: str | Scenario | Sequence[Task], *, render_mode: Any = None, **overrides: Any) -> ContinualEnv:
    """Make the environment of a registered scenario, or of tasks, without wrappers.

    Args:
        scenario: Gymnasium id, e.g. ``clenv/SplitDigits-v0``; ``module:id`` imports the module that registers it first.
            Or tasks, or a `Scenario`; then every setting that is not given is as `Settings` has it.
        render_mode: ``rgb_array`` or None.
        **overrides: Settings of the stream (see `Settings`) and arguments of the registered scenario. A ``schedule``
            without a ``horizon`` is played to its end; a ``round_length`` takes the place of a scenario's ``epochs``.

    Raises:
        gymnasium.error.UnregisteredEnv: There is no such id; the message names the nearest.
        SettingsError: An override is unknown or out of range.

    Example:
        >>> tasks = scenarios.split(x, y, classes_per_task=2)  # doctest: +SKIP
        >>> env = make(tasks, alpha=0.9, horizon=1000)  # doctest: +SKIP
    """
    if not isinstance(scenario, str):
        return ContinualEnv(_tasks(scenario), _settings(overrides), render_mode=render_mode)
    spec = scenario_spec(scenario)
    kwargs = _kwargs(spec, overrides)
    env = create(render_mode=render_mode, **kwargs)
    env.spec = EnvSpec(spec.id, entry_point=_ENTRY_POINT, kwargs=kwargs, disable_env_checker=True)
    return env


def _kwargs(spec: EnvSpec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a registered scenario, some of them overridden."""
    implied: dict[str, Any] = {"horizon": None} if "schedule" in overrides else {}
    if "round_length" in overrides and overrides.get("epochs") is None:  # else the scenario's own would win
        implied |= {"epochs": None, "last": "wrap"}
    return {**spec.kwargs, **implied, **overrides}


def make_vec(
    scenario: str | Scenario | Sequence[Task], *, seeds: Sequence[int] = range(32), **overrides: Any
) -> ContinualVectorEnv:
    """Make streams of one scenario side by side, each bit for bit that of `make` with its seed.

    Args:
        scenario: As for `make`.
        seeds: Seed of each stream.
        **overrides: As for `make`.

    Raises:
        gymnasium.error.UnregisteredEnv: There is no such id; the message names the nearest.
        SettingsError: An override or a seed is unknown or out of range.

    Example:
        >>> env = make_vec("clenv/SplitDigits-v0", seeds=range(8), alpha=0.9)  # doctest: +SKIP
        >>> herd = make_agent("hat", env)  # doctest: +SKIP
        >>> observations, infos = env.reset()  # doctest: +SKIP
        >>> observations, rewards, terminated, truncated, infos = env.step(herd)  # doctest: +SKIP
    """
    if not isinstance(scenario, str):
        return ContinualVectorEnv(_tasks(scenario), seeds, _settings(overrides))
    spec = scenario_spec(scenario)
    kwargs = _kwargs(spec, overrides)
    env = create_vec(seeds=seeds, **kwargs)
    env.spec = EnvSpec(
        spec.id,
        entry_point=_ENTRY_POINT,
        vector_entry_point=_VECTOR_ENTRY_POINT,
        kwargs={**kwargs, "seeds": tuple(seeds)},
        disable_env_checker=True,
    )
    for row in env.rows:
        row.spec = EnvSpec(spec.id, entry_point=_ENTRY_POINT, kwargs=kwargs, disable_env_checker=True)
    return env


def scenario_ids() -> list[str]:
    """Return the ids of all scenarios registered so far and of installed plugins."""
    for plugin in entry_points(group="clenv.scenarios"):
        plugin.load()
    return sorted(spec.id for spec in gymnasium_registry.values() if spec.entry_point == _ENTRY_POINT)


# Agents


def register_agent(name: str, agent: type[Agent] | str) -> None:
    """Register an agent under a name.

    Args:
        name: What `make_agent` and the command line call it.
        agent: The class, or its path ``module:Class``, imported when it is used.
    """
    _agents[name] = agent


def agent_names() -> list[str]:
    """Return the names of all registered agents and of installed plugins (group ``clenv.agents``)."""
    return sorted({*_agents, *(plugin.name for plugin in entry_points(group="clenv.agents"))})


def agent_class(agent: str | type[Agent]) -> type[Agent]:
    """Return an agent's class by registered name, path ``module:Class``, or itself.

    Raises:
        UnknownNameError: There is no such agent; the message names the nearest.
        TypeError: What was found is not an `Agent` class.
    """
    found: Any = agent
    if isinstance(agent, str):
        found = _agents.get(agent)
        if found is None:
            plugins = {plugin.name: plugin for plugin in entry_points(group="clenv.agents")}
            if agent in plugins:
                found = plugins[agent].load()
            elif ":" in agent and agent.split(":")[0] not in {name.split(":")[0] for name in _agents}:
                found = agent
            else:
                raise UnknownNameError(
                    f"no agent is called {agent!r}.{nearest(agent, agent_names())} A path module:Class works as well."
                )
        if isinstance(found, str):
            found = _resolve(found)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise TypeError(f"{agent!r} is not an Agent class")
    return found


def agent_name(cls: type[Agent]) -> tuple[str, str]:
    """Return the name a class is registered under, or else its path; and its path ``module:Class``.

    Raises:
        SettingsError: No path leads to the class, so that no other process can find it.
    """
    path = f"{cls.__module__}:{cls.__qualname__}"
    if "<" in path or _resolve(path) is not cls:
        raise SettingsError(f"no import path leads to the agent {path}: expected a class at the top of a module")
    names = [name for name, known in _agents.items() if known in (cls, path)]
    return (names or [path])[0], path


@overload
def make_agent(
    agent: str | type[Agent],
    env: gymnasium.Env[Any, Any] | StreamSpec,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    **hyperparameters: Any,
) -> Agent: ...
@overload
def make_agent(
    agent: str | type[Agent],
    env: VectorEnv[Any, Any, Any],
    *,
    seeds: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    **hyperparameters: Any,
) -> Herd: ...
def make_agent(
    agent: str | type[Agent],
    env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any] | StreamSpec,
    *,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    **hyperparameters: Any,
) -> Agent | Herd:
    """Make an agent for a stream, if the stream offers what it needs; or a herd for streams side by side.

    Args:
        agent: Registered name, path ``module:Class``, or class.
        env: The environment (wrapped or not), or its `StreamSpec`; a herd is made for one of `make_vec`.
        seed: Seed of everything the agent draws.
        seeds: Of a herd: the seed of each member; None: those of the streams.
        device: Where its tensors live; None: where the environment's data are.
        **hyperparameters: See the agent's ``Hyperparameters``.

    Raises:
        CapabilityError: The stream lacks something the agent needs, or such agents make no herd; the message says what.
        UnknownNameError: There is no such agent.
        SettingsError: A hyperparameter is unknown or out of range.
    """
    cls = agent_class(agent)
    world = env if isinstance(env, StreamSpec) else env.unwrapped
    if isinstance(world, ContinualVectorEnv):
        return _make_herd(cls, world, seeds, device or world.settings.device, hyperparameters)
    if isinstance(world, ContinualEnv):
        spec, default = world.stream_spec, world.settings.device
    elif isinstance(world, StreamSpec):
        spec, default = world, "cpu"
    else:
        raise TypeError(f"make_agent needs a clenv environment or its stream_spec, not {type(world).__name__}")
    if seeds is not None:
        raise SettingsError(f"seeds={seeds!r}: one stream has one agent, expected seed=")
    check_capabilities(cls, spec)
    return cls(spec, seed=seed, device=device or default, **hyperparameters)


def _make_herd(
    cls: type[Agent],
    env: ContinualVectorEnv,
    seeds: Sequence[int] | None,
    device: str | torch.device,
    hyperparameters: Mapping[str, Any],
) -> Herd:
    seeds = env.seeds if seeds is None else seeds
    if len(seeds) != env.num_envs:
        raise SettingsError(f"{len(seeds)} seeds for {env.num_envs} streams: expected one each")
    check_capabilities(cls, env.stream_spec)
    _check_herds(cls)
    return herd_of([cls(env.stream_spec, seed=seed, device=device, **hyperparameters) for seed in seeds])


def herd_of(members: Sequence[Agent]) -> Herd:
    """Make a herd of fresh agents of one class and the same hyperparameters.

    Raises:
        CapabilityError: Such agents make no herd; the message says what.
    """
    cls = type(members[0])
    _check_herds(cls)
    herd: Herd = imported(str(cls.herds))(members)
    return herd


def _check_herds(cls: type[Agent]) -> None:
    if cls.herds is None or "herds" not in vars(cls):  # a class that it is derived from may say so
        able = [name for name in _agents if ":" not in name and "herds" in vars(agent_class(name))]
        raise CapabilityError(f"{cls.__name__} learns alone only; herds can be made of {', '.join(sorted(able))}")


def check_capabilities(cls: type[Agent], spec: StreamSpec) -> None:
    """Refuse an agent whose needs a stream does not meet.

    Raises:
        CapabilityError: The message names the need and the setting that would meet it.
    """
    enough = {
        "never": ("given", "train-only", "hidden"),
        "train": ("given", "train-only"),
        "always": ("given",),
    }
    if spec.task_labels not in enough[cls.needs_task_labels]:
        when = "at any time" if cls.needs_task_labels == "always" else "with the targets"
        raise CapabilityError(
            f"{cls.__name__} must be told the task {when}, but task_labels={spec.task_labels!r}: "
            f"expected {' or '.join(map(repr, enough[cls.needs_task_labels]))}"
        )
    if spec.loss not in cls.losses:
        raise CapabilityError(
            f"{cls.__name__} learns by {' or '.join(cls.losses)}, but the tasks of this stream have loss {spec.loss!r}"
        )
    if cls.needs_pretraining and not spec.pretrain_steps:
        raise CapabilityError(f"{cls.__name__} needs a pre-training phase, but pretrain_steps=0")
