"""clenv: a gym-style world for continual learning with forgetting on purpose."""

from clenv.agent import Agent, NoHyperparameters, Outcome
from clenv.arithmetic import portable
from clenv.bench.report import report
from clenv.bench.results import results
from clenv.env import ContinualEnv
from clenv.errors import (
    CapabilityError,
    CheckpointError,
    ClenvError,
    ClenvWarning,
    DataError,
    PredictionError,
    ProtocolError,
    SettingsError,
    UnknownNameError,
)
from clenv.evaluation.audit import audit
from clenv.evaluation.verdict import Audit, Verdict
from clenv.events import Exactness, Permanence, Receipt, Refusal, UnlearnRequest, VisitBegin, VisitEnd
from clenv.herd import Herd
from clenv.picture import Picture
from clenv.registry import agent_names, make, make_agent, make_vec, register, register_agent, scenario_ids
from clenv.running.record import Record
from clenv.running.run import resume, run
from clenv.settings import Settings, StreamSpec
from clenv.split import OnDisk, Part, Split, number_classes
from clenv.task import Contexts, Scenario, Task
from clenv.vector import ContinualVectorEnv
from clenv.world.requests import CLPU, RandomRequests, Requests, Script, permanent, unlearn
from clenv.world.retention import Evaluation, Retention
from clenv.world.score import Score

# The composition root: importing these registers what is built in, by name, and loads no method and no data.
from clenv import agents, avalanche, scenarios  # isort: skip

__all__ = [
    "CLPU",
    "Agent",
    "Audit",
    "CapabilityError",
    "CheckpointError",
    "ClenvError",
    "ClenvWarning",
    "Contexts",
    "ContinualEnv",
    "ContinualVectorEnv",
    "DataError",
    "Evaluation",
    "Exactness",
    "Herd",
    "NoHyperparameters",
    "OnDisk",
    "Outcome",
    "Part",
    "Permanence",
    "Picture",
    "PredictionError",
    "ProtocolError",
    "RandomRequests",
    "Receipt",
    "Record",
    "Refusal",
    "Requests",
    "Retention",
    "Scenario",
    "Score",
    "Script",
    "Settings",
    "SettingsError",
    "Split",
    "StreamSpec",
    "Task",
    "UnknownNameError",
    "UnlearnRequest",
    "Verdict",
    "VisitBegin",
    "VisitEnd",
    "agent_names",
    "agents",
    "audit",
    "avalanche",
    "make",
    "make_agent",
    "make_vec",
    "number_classes",
    "permanent",
    "portable",
    "register",
    "register_agent",
    "report",
    "results",
    "resume",
    "run",
    "scenario_ids",
    "scenarios",
    "unlearn",
]
