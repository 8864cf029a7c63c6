"""All measurements of one unlearning request, and the verdict drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent, tensors
from clenv.evaluation.distances import feature_distances, in_batches, jensen_shannon, parameter_distance
from clenv.evaluation.leftovers import Finding, find_examples, search
from clenv.evaluation.levels import EXAMPLES, Scores, better, changed_tasks, readers, worse, wrong_on_purpose
from clenv.evaluation.masks import FeatureMask, masked_features
from clenv.evaluation.membership import (
    Attack,
    Head,
    halves,
    linear_probe,
    membership_attack,
    membership_verdict,
    retained_head,
)
from clenv.evaluation.relearning import Relearning, compare_relearning, fresh_visit
from clenv.evaluation.replay import PROBES, Removal, Replay, answers, gone_by
from clenv.evaluation.verdict import Capacity, Cost, Gap, Membership, Trio, Verdict
from clenv.events import Exactness
from clenv.rng import generator
from clenv.running.states import difference

_TEST = 1000  # held-out inputs of each task that are measured
_KEPT = 200  # of these, whose answers are kept with the verdict
_MEMBERS = 1000  # training examples that are attacked and searched for
_OTHERS = 200  # of each remaining task, which may be kept
_LINEAR = 0.999  # share of the answers' variance that a kept head must explain
_LEAST_PROBE = 20  # held-out examples that a probe is fitted on, at least
_RELEARN = 100  # steps of a fresh visit
_FAST = 0.5  # ratio of relearning times below which knowledge was left
_FEATURES = ("jsd", "js_distance", "cosine", "euclidean", "manhattan", "cka")
_EXAMPLES = ("exact", "cast", "scaled", "near")  # kinds of findings that are data


@dataclass(frozen=True)
class Evidence:
    """What a verdict is drawn from; snapshots are those of `clenv.evaluation.replay.Replay.snapshot`.

    Attributes:
        env: The recorded world, reset: for its data.
        fresh: Makes a fresh agent; with ``other_seed=True`` one of another seed.
        stop: Moment of judgement.
        mask: Through which mask features are read.
        requests: What is judged.
        before: State of the main agent before the removal of each task removed so far.
        main: The agent that was asked, at the stop.
        reference: The agent that never saw what was removed.
        full: The agent that was never asked.
        other: A reference of another seed; None if there is none.
        served: The main agent right after each request.
        ends: The main and the full agent at the end of the stream.
        overhead: Time of a step divided by that of a step with unlearning switched off; nan if it cannot be.
    """

    env: Replay
    fresh: Callable[..., Agent]
    stop: int
    mask: FeatureMask
    requests: tuple[Removal, ...]
    before: Mapping[int, Mapping[str, Any]]
    main: dict[str, Any]
    reference: dict[str, Any]
    full: dict[str, Any]
    other: dict[str, Any] | None
    served: tuple[dict[str, Any], ...]
    ends: tuple[dict[str, Any], dict[str, Any]]
    overhead: float


class Hearing:
    """Takes all measurements of one case.

    Args:
        evidence: What there is.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence, self._env = evidence, evidence.env
        self._visits = [
            (number, visit)
            for number, visit in enumerate(self._env.recorded.visits)
            if 0 <= visit.first_step <= evidence.stop
        ]
        self._seen = sorted({visit.task for _, visit in self._visits})
        self._gone = gone_by(self._env.recorded, evidence.stop)
        self._remaining = self._staying(evidence.stop)
        asked = {task for request in evidence.requests for task in request.tasks}
        self._removed = sorted(asked - set(self._remaining))  # without those that came back since
        self._unlearned = [task for task in self._seen if task not in self._remaining]
        self._before = {task: self._restore(state) for task, state in evidence.before.items()}
        self._gates = {task: agent.gate(task) for task, agent in self._before.items()}
        self._main, self._reference, self._full = (
            self._restore(snapshot["state"]) for snapshot in (evidence.main, evidence.reference, evidence.full)
        )
        self._fresh = evidence.fresh()
        self._other = None if evidence.other is None else self._restore(evidence.other["state"], other_seed=True)
        self._difference = difference(evidence.main["state"], evidence.reference["state"])

    def verdict(self) -> Verdict:
        """Measure everything, and judge."""
        claimed, untrue = self._claim()
        measured, short = self._level()
        differences = self._accuracy_differences()
        return Verdict(
            step=self._evidence.stop,
            tasks=tuple(map(self._name, self._removed)),
            remaining=tuple(map(self._name, self._remaining)),
            claimed=claimed,
            measured=measured,
            holds=claimed <= measured and not untrue,
            reasons=(*untrue, *short),
            leaks=tuple(self._leaks()),
            leftovers=tuple(f"{finding.path} ({finding.kind}, {finding.count})" for finding in self._leftovers),
            distances=self._distances(self._unlearned),
            distances_all=self._distances(self._seen),
            parameters=self._parameters[0],
            identical=self._parameters[1],
            accuracy=self._accuracy,
            retained_head=self._retained_head,
            attacks=self._attacks,
            relearning=self._relearning,
            accuracy_difference=_mean(differences.values()),
            accuracy_differences=differences,
            loss_difference=self._loss_difference(),
            cost=self._cost(),
            mask=self._evidence.mask,
            answers=self._answers(),
        )

    def _restore(self, state: Mapping[str, Any], *, other_seed: bool = False) -> Agent:
        agent = self._evidence.fresh(other_seed=True) if other_seed else self._evidence.fresh()
        agent.load_state_dict(dict(state))
        return agent

    def _name(self, task: int) -> str:
        epoch = max((visit.epoch for _, visit in self._visits if visit.task == task), default=1)
        own = self._env.tasks[task].id
        return own if epoch < 2 else f"{own}#{epoch}"

    # The claim, and the level

    def _claim(self) -> tuple[Exactness, list[str]]:
        """Return the lowest level of the receipts, and what is untrue in them."""
        levels, untrue = [], []
        for request, snapshot in zip(self._evidence.requests, self._evidence.served, strict=True):
            receipts = snapshot["receipts"]
            levels += [Exactness(receipt["level"]) for receipt in receipts]
            refused = all(receipt["level"] == Exactness.UNSUPPORTED for receipt in receipts)
            if refused and difference(snapshot["state"], snapshot["before"]) is not None:
                untrue.append("the receipt says that the request was refused, but the state changed")
            told = {task for receipt in receipts for task in receipt["changed"]}
            silent = [task for task in self._moved(request, snapshot) if task not in told]
            if silent:
                untrue.append(f"outputs of {self._names(silent)} changed, which the receipt does not say")
        return min(levels), untrue

    def _names(self, tasks: Sequence[int]) -> str:
        return ", ".join(map(self._name, tasks))

    def _staying(self, step: int) -> list[int]:
        """Return the tasks that remain right after the requests of a step."""
        gone = gone_by(self._env.recorded, step)
        return sorted({v.task for number, v in self._visits if v.first_step <= step and number not in gone})

    def _moved(self, request: Removal, snapshot: Mapping[str, Any]) -> list[int]:
        """Return the remaining tasks whose outputs a request changed."""
        staying = self._staying(request.step)
        before = answers(self._before[request.tasks[0]], self._env, staying, EXAMPLES)
        return changed_tasks(before, answers(self._restore(snapshot["state"]), self._env, staying, EXAMPLES), staying)

    def _level(self) -> tuple[Exactness, list[str]]:
        """Return the highest level that the tests allow, and why it is not higher."""
        if open_ := self._not_interface():
            return Exactness.UNSUPPORTED, open_
        if self._difference is None:
            return Exactness.EXACT, []
        inexact = f"not exact: {self._difference} from the reference"
        if mixed := self._not_isolated():
            return Exactness.INTERFACE, [inexact, *mixed]
        return Exactness.ISOLATED, [inexact]

    def _not_interface(self) -> list[str]:
        """Return what says that the removed tasks can be queried, or their data read."""
        evidence, found = self._evidence, []
        kept = [finding for finding in self._leftovers if finding.kind in _EXAMPLES and not _moments(finding)]
        if kept:
            found.append(f"{sum(f.count for f in kept)} copies of removed examples are kept, e.g. in {kept[0].path}")
        live = evidence.main["answers"]
        restored = answers(self._main, self._env, list(live), PROBES)
        if unlike := changed_tasks(live, restored, list(live)):
            found.append(f"its state is not all that it answers {self._names(unlike)} with: something is hidden")
        if self._difference is None:
            return found
        for request, snapshot in zip(evidence.requests, evidence.served, strict=True):
            sets = [self._before[request.tasks[0]], self._restore(snapshot["state"]), self._fresh]
            before, after, fresh = (answers(agent, self._env, request.tasks, EXAMPLES) for agent in sets)
            changed = changed_tasks(before, after, request.tasks)
            same = [
                task for task in request.tasks if task not in changed and task in changed_tasks(fresh, after, [task])
            ]
            if same:
                found.append(f"{self._names(same)} is answered as before the request")
        for task in self._removed:
            scores = self._scores[task]
            others = [score for name, score in scores.items() if name not in {"main", "full"}]
            classes = 0 if math.isnan(scores["main"].accuracy) else self._env.stream_spec.outputs(task)
            if wrong_on_purpose(scores["main"], others, classes):
                losses = f"loss {scores['main'].loss:.2f}, never having seen it {max(s.loss for s in others):.2f}"
                found.append(f"{self._name(task)} is answered wrongly, with confidence ({losses})")
        return found

    def _not_isolated(self) -> list[str]:
        """Return what says that remaining tasks read what removed ones wrote, or that something was kept for those."""
        evidence, found = self._evidence, []
        for request, snapshot in zip(evidence.requests, evidence.served, strict=True):
            if moved := self._moved(request, snapshot):
                found.append(f"not isolated: the request changed outputs of {self._names(moved)}")
            reading = readers(
                self._restore, self._env, snapshot["state"], snapshot["written"], self._staying(request.step)
            )
            if reading:
                found.append(f"not isolated: {self._names(reading)} read what the removed visits wrote")
        if kept := [finding.path for finding in self._leftovers if finding.kind not in _EXAMPLES]:
            found.append(f"not isolated: the state holds {kept[0]}, which a run without the task lacks")
        return found

    @cached_property
    def _leftovers(self) -> list[Finding]:
        """What is found in the main agent of the removed tasks, and not in the reference."""
        evidence = self._evidence
        others = [self._rows(task, None)[0][:_OTHERS] for task in self._remaining]
        rest = torch.cat(others) if others else None
        found: list[Finding] = []
        for task in self._removed:
            examples, _ = self._members(task)
            found += search(
                evidence.main["state"], examples, others=rest, task=task, reference=evidence.reference["state"]
            )
            known = {finding.path for finding in find_examples(evidence.reference["hidden"], examples, rest)}
            hidden = find_examples(evidence.main["hidden"], examples, rest)
            found += [finding for finding in hidden if finding.path not in known]
        return list(dict.fromkeys(found))

    # Data

    def _told(self, task: int) -> int | None:
        return task if self._env.settings.task_labels == "given" else None

    def _rows(self, task: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        x, y = self._env.examples(task, "train")
        return (x, y) if rows is None else (x[rows], y[rows])

    def _members(self, task: int) -> tuple[Tensor, Tensor]:
        """Return the training examples of a removed task that the removed visits showed, at most so many."""
        visits = [number for number, visit in self._visits if visit.task == task and number in self._gone]
        rows = torch.unique(torch.cat([self._env.rows_shown(number) for number in visits]))
        if len(rows) > _MEMBERS:
            rows = rows[torch.from_numpy(generator(0, "members").permutation(len(rows))[:_MEMBERS]).to(rows.device)]
        return self._rows(task, rows)

    def _outputs(self, agent: Agent, task: int, x: Tensor) -> Tensor:
        columns = self._env.stream_spec.outputs(task)
        return in_batches(lambda part: agent.predict(part, self._told(task))[:, :columns], x)

    def _features(self, agent: Agent, task: int, x: Tensor, mask: FeatureMask = "own") -> Tensor | None:
        """Return features of a task's inputs, of a removed one through the gate that it had; None: no backbone."""
        gate = self._gates.get(task) if task in self._unlearned else agent.gate(task)
        try:
            return masked_features(agent, x, mask, live=self._remaining, gate=gate)
        except NotImplementedError:  # as the contract allows
            return None

    # Distances

    def _distances(self, tasks: Sequence[int]) -> dict[str, Gap]:
        """Return the gap in each metric, the mean over tasks; empty if there are none."""
        agents = {"main": self._main, "nothing": self._full, "fresh": self._fresh}
        if self._other is not None:
            agents["seeds"] = self._other
        by_agent = {
            name: [self._distance(name, agent, task) for task in tasks] for name, agent in agents.items() if tasks
        }
        metrics = by_agent["main"][0] if by_agent else ()
        return {
            metric: Gap(**{name: _mean([each[metric] for each in found]) for name, found in by_agent.items()})
            for metric in metrics
        }

    def _distance(self, name: str, agent: Agent, task: int) -> dict[str, float]:
        """Return an agent's distances to the reference on one task, by metric."""
        if (name, task) not in self._measured:
            x, _ = self._env.examples(task, "test", _TEST)
            outputs = [self._outputs(each, task, x) for each in (agent, self._reference)]
            if self._env.stream_spec.loss == "mse":
                found = {"output_rms": (outputs[0] - outputs[1]).square().mean().sqrt().item()}
            else:
                found = {"output_jsd": jensen_shannon(*outputs).mean().item()}
            features = [self._features(each, task, x, self._evidence.mask) for each in (agent, self._reference)]
            if features[0] is not None and features[1] is not None and features[0].shape == features[1].shape:
                distances = feature_distances(features[0], features[1])
                found.update({metric: getattr(distances, metric) for metric in _FEATURES})
            self._measured[name, task] = found
        return self._measured[name, task]

    @cached_property
    def _measured(self) -> dict[tuple[str, int], dict[str, float]]:
        return {}

    @cached_property
    def _parameters(self) -> tuple[Gap, Trio]:
        evidence = self._evidence
        start, reference = self._fresh.state_dict(), evidence.reference["state"]
        main, full, fresh = (
            parameter_distance(state, reference, start)
            for state in (evidence.main["state"], evidence.full["state"], start)
        )
        return Gap(main.relative, full.relative, fresh=fresh.relative), Trio(main.identical, 1.0, full.identical)

    def _answers(self) -> dict[str, Tensor]:
        """Return some answers on the removed tasks, of agent and reference; none where seeds have other tasks."""
        spec, found = self._env.stream_spec, {}
        for task in self._removed if spec.loss == "cross_entropy" and spec.tasks is not None else ():
            x, _ = self._env.examples(task, "test", _KEPT)
            outputs = [self._outputs(agent, task, x) for agent in (self._main, self._reference)]
            found[self._name(task)] = torch.stack(outputs).float().cpu()
        return found

    # What an attacker finds

    @cached_property
    def _scores(self) -> dict[int, dict[str, Scores]]:
        """Scores on held-out data of each removed task, by agent."""
        agents = {"main": self._main, "reference": self._reference, "full": self._full, "fresh": self._fresh}
        if self._other is not None:
            agents["other"] = self._other
        found: dict[int, dict[str, Scores]] = {}
        for task in self._removed:
            x, y = self._env.examples(task, "test", _TEST)
            found[task] = {name: Scores(self._outputs(agent, task, x), y.cpu()) for name, agent in agents.items()}
        return found

    @property
    def _trio(self) -> dict[str, Agent]:
        return {"main": self._main, "reference": self._reference, "full": self._full}

    @cached_property
    def _accuracy(self) -> Trio:
        return Trio(**{name: _mean([scores[name].accuracy for scores in self._scores.values()]) for name in self._trio})

    @cached_property
    def _heads(self) -> dict[int, dict[str, Head]]:
        """Heads an attacker may put on features of a removed task: the one it kept, and a probe on other data."""
        if self._env.stream_spec.loss == "mse":
            return {}
        found: dict[int, dict[str, Head]] = {}
        for task in self._removed:
            x, _ = self._members(task)
            before = self._before[task]
            try:
                features = in_batches(partial(before.features, task=self._told(task)), x)
            except NotImplementedError:  # as the contract allows
                continue
            head, fit = retained_head(features, self._outputs(before, task, x))
            found[task] = {"kept head": head} if fit >= _LINEAR else {}
        return found

    @cached_property
    def _through(self) -> dict[int, dict[str, Scores]]:
        """Scores on held-out data of each removed task through the head that was kept."""
        found: dict[int, dict[str, Scores]] = {}
        for task, heads in self._heads.items():
            x, y = self._env.examples(task, "test", _TEST)
            looks = {name: self._features(agent, task, x) for name, agent in self._trio.items()}
            if "kept head" in heads:
                head = heads["kept head"]
                found[task] = {name: Scores(head(look), y.cpu()) for name, look in looks.items() if look is not None}
        return found

    @cached_property
    def _retained_head(self) -> Trio | None:
        scores = self._through.values()
        return Trio(**{name: _mean([s[name].accuracy for s in scores]) for name in self._trio}) if scores else None

    @cached_property
    def _attacks(self) -> dict[str, Membership]:
        """Membership attacks on each removed task, by what the attacker looks through."""
        found: dict[str, Membership] = {}
        for task in self._removed:
            x, y = self._members(task)
            unseen, labels = self._env.examples(task, "test", _TEST)
            fitted, attacked = halves(len(unseen))  # of the held-out examples, for a probe
            looks: dict[str, dict[str, Attack]] = {"own answers": {}}
            for name, agent in self._trio.items():
                own = [self._outputs(agent, task, each) for each in (x, unseen)]
                looks["own answers"][name] = membership_attack(own[0], y, own[1], labels)
                if task not in self._heads:
                    continue
                inside, outside = (self._features(agent, task, each) for each in (x, unseen))
                assert inside is not None  # for the type checker: there are heads
                assert outside is not None  # likewise
                for through, head in self._heads[task].items():
                    looks.setdefault(through, {})[name] = membership_attack(head(inside), y, head(outside), labels)
                if len(labels[fitted]) >= _LEAST_PROBE and len(set(labels[fitted].tolist())) > 1:
                    probe = linear_probe(outside[fitted], labels[fitted], self._env.stream_spec.outputs(task))
                    looks.setdefault("probe", {})[name] = membership_attack(
                        probe(inside), y, probe(outside[attacked]), labels[attacked]
                    )
            for through, attacks in looks.items():
                label = through if len(self._removed) == 1 else f"{through}, {self._name(task)}"
                found[label] = _membership(attacks)
        return found

    @cached_property
    def _relearning(self) -> dict[str, Relearning]:
        """A fresh visit of each removed task, of the agent and of its reference."""
        found = {}
        for task in self._removed:
            x, y = self._env.examples(task, "test", _TEST)
            known = Scores(self._outputs(self._before[task], task, x), y.cpu()).accuracy
            reference = fresh_visit(self._env, self._reference, task, _RELEARN)
            same = self._difference is None
            main = reference if same else fresh_visit(self._env, self._main, task, _RELEARN)
            found[self._name(task)] = compare_relearning(main, reference, known)
        return found

    def _leaks(self) -> list[str]:
        """Return what gives away that a removed task was once known."""
        examples = [finding for finding in self._leftovers if finding.kind in _EXAMPLES]
        entries = [finding for finding in self._leftovers if finding.kind not in _EXAMPLES]
        found = [f"{f.count} examples are found in {f.path} ({f.kind})" for f in examples]
        if entries:
            found.append(f"{len(entries)} entries of the state are in no run without the task, e.g. {entries[0].path}")
        for task, scores in self._scores.items():
            main, reference = scores["main"], scores["reference"]
            others = [score for name, score in scores.items() if name not in {"main", "full"}]
            known = f"(accuracy {main.accuracy:.2f}, reference {reference.accuracy:.2f})"
            if all(better(main, other) for other in others):
                found.append(f"{self._name(task)} is answered better than by anyone who never saw it {known}")
            if worse(main, others):
                found.append(f"{self._name(task)} is answered worse than by anyone who never saw it {known}")
        for task, scores in self._through.items():
            main, reference = scores["main"], scores["reference"]
            if better(main, reference):
                known = f"accuracy {main.accuracy:.2f}, reference {reference.accuracy:.2f}"
                found.append(f"through the head it had, the backbone still knows {self._name(task)} ({known})")
        found += [
            f"membership can be inferred through {name}" for name, a in self._attacks.items() if a.verdict == "leaks"
        ]
        for name, relearning in self._relearning.items():
            if relearning.ratio < _FAST:  # of what the reference needs at least, if it does not get there
                found.append(
                    f"{name} is learned again in {relearning.steps} steps, "
                    f"the reference needs {relearning.words(relearning.reference_steps)}"
                )
        return found

    # Gains and costs

    def _accuracy_differences(self) -> dict[str, float]:
        """Return accuracy minus that of the full agent, by remaining task; empty for regression."""
        if self._env.stream_spec.loss == "mse":
            return {}
        found = {}
        for task in self._remaining:
            x, y = self._env.examples(task, "test", _TEST)
            main, full = (Scores(self._outputs(agent, task, x), y.cpu()) for agent in (self._main, self._full))
            found[self._name(task)] = main.accuracy - full.accuracy
        return found

    def _loss_difference(self) -> float:
        main, full = self._evidence.ends
        steps = min(len(main["losses"]), len(full["losses"]))
        after = main["steps"][:steps] > min(request.step for request in self._evidence.requests)
        return float((full["losses"][:steps] - main["losses"][:steps])[after].sum()) if after.any() else math.nan

    def _cost(self) -> Cost:
        evidence = self._evidence
        receipts = [receipt for snapshot in evidence.served for receipt in snapshot["receipts"]]
        state = evidence.main["state"]
        main, full = (snapshot["seconds"] / max(1, len(snapshot["losses"])) for snapshot in evidence.ends)
        return Cost(
            seconds=sum(receipt["seconds"] for receipt in receipts),
            samples=sum(receipt["samples"] for receipt in receipts),
            bytes_freed=sum(receipt["bytes_freed"] for receipt in receipts),
            memory=sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)),
            retrain_seconds=evidence.reference["seconds"],
            retrain_samples=len(evidence.reference["losses"]) * self._env.settings.batch_size,
            slow_down=main / full if full > 0 else math.nan,
            capacity=self._capacity(),
            overhead=evidence.overhead,
        )

    def _capacity(self) -> Capacity:
        """Return how much was in use around the last request, and when what it freed was there to use, and was used."""
        evidence = self._evidence
        request = evidence.requests[-1]
        before = _mean(self._before[request.tasks[0]].capacity().values())
        after = _mean(evidence.served[-1]["capacity"].values())
        in_use = {
            step - request.step: share for step, share in evidence.ends[0]["in_use"].items() if step >= request.step
        }
        return Capacity(
            before=before,
            after=after,
            reference=_mean(evidence.reference["capacity"].values()),
            usable=min((waited for waited, share in in_use.items() if share < before), default=math.nan),
            used=min((waited for waited, share in in_use.items() if share > after), default=math.nan),
        )


def _moments(finding: Finding) -> bool:
    """Whether a likeness of an example is a trace in an optimiser's moments, as one in shared weights would be.

    The gradient of a unit that was active for one example alone is that example, scaled: a leak, but no kept copy.
    """
    return finding.kind in {"scaled", "near"} and "['__state_dict__']['state']" in finding.path


def _membership(attacks: Mapping[str, Attack]) -> Membership:
    judged = membership_verdict(attacks["main"], attacks["reference"], attacks["full"])
    main = attacks["main"]
    return Membership(
        members=main.members,
        auc=Trio(**{name: attack.auc for name, attack in attacks.items()}),
        auc_chance=main.auc_chance,
        accuracy=Trio(**{name: attack.feature_accuracy for name, attack in attacks.items()}),
        accuracy_chance=main.accuracy_chance,
        verdict="uninformative" if judged.leaks is None else "leaks" if judged.leaks else "passed",
    )


def _mean(values: Any) -> float:
    known = list(values)
    return fmean(known) if known else math.nan
