"""What an attacker finds out of the agents of a case: answers, kept heads, membership, relearning."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial

import torch

from clenv.agent import Agent
from clenv.evaluation.case import Case, mean_of
from clenv.evaluation.distances import in_batches
from clenv.evaluation.levels import Scores
from clenv.evaluation.membership import (
    Attack,
    Head,
    by_prototypes,
    halves,
    linear_probe,
    membership_attack,
    membership_verdict,
    retained_head,
)
from clenv.evaluation.relearning import Relearning, compare_relearning, fresh_visit
from clenv.evaluation.trio import Trio
from clenv.evaluation.verdict import Membership

_TEST = 1000  # held-out inputs of each task that are measured
_LINEAR = 0.999  # share of the answers' variance that a kept head must explain
_LEAST_PROBE = 20  # held-out examples that a probe is fitted on, at least
_RELEARN = 100  # steps of a fresh visit
_PROTOTYPES = (1, 5, 10)  # examples of each class that an attacker has
_LEAST_ATTACKED = 5  # examples on either side of an attack


class Attacks(Case):
    """What an attacker finds."""

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
        return Trio(
            **{name: mean_of([scores[name].accuracy for scores in self._scores.values()]) for name in self._trio}
        )

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
        return Trio(**{name: mean_of([s[name].accuracy for s in scores]) for name in self._trio}) if scores else None

    @cached_property
    def _prototypes(self) -> dict[str, Trio]:
        """Accuracies by nearest mean features (Ha, Park, Yoon, ICML 2026, arXiv 2506.01318), by examples a class."""
        found: dict[str, list[dict[str, float]]] = {}
        for task in self._heads:
            (x, y), (unseen, labels) = self._members(task), self._env.examples(task, "test", _TEST)
            looks = {name: [self._features(a, task, each) for each in (x, unseen)] for name, a in self._trio.items()}
            for count in _PROTOTYPES:
                if min(int((y == c).sum()) for c in set(y.tolist())) >= count:
                    scores = {
                        name: by_prototypes(known, y, test, labels, count)
                        for name, (known, test) in looks.items()
                        if known is not None and test is not None
                    }
                    found.setdefault(str(count), []).append(scores)
        return {
            count: Trio(**{name: mean_of(scores[name] for scores in each) for name in self._trio})
            for count, each in found.items()
        }

    @cached_property
    def _exposure(self) -> Trio | None:
        """Mean area of membership attacks on what remains (after TC-UMIA, arXiv 2605.01129), by the agents' answers."""
        found: list[dict[str, float]] = []
        for task in self._remaining:
            visits = [number for number, visit in self._visits if visit.task == task and number not in self._gone]
            rows = torch.unique(torch.cat([self._env.rows_shown(number) for number in visits]))[:_TEST]
            (x, y), (unseen, labels) = self._rows(task, rows), self._env.examples(task, "test", _TEST)
            if min(len(y), len(labels)) >= _LEAST_ATTACKED:
                answers = {
                    name: [self._outputs(a, task, each) for each in (x, unseen)] for name, a in self._trio.items()
                }
                found.append(
                    {name: membership_attack(own, y, other, labels).auc for name, (own, other) in answers.items()}
                )
        return Trio(**{name: mean_of(each[name] for each in found) for name in self._trio}) if found else None

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
