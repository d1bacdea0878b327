"""Does racing find the best method for a third of the money? Simulated studies whose truth is known.

    python bench/racing.py [--studies 200] [--json out.json]
    python bench/racing.py --curves [--studies 200]     regret against money, beside plain successive halving and random search

A study has eight methods with four settings each. Each method has its own best score, its own speed of learning (curves
cross: the early leader is often not the best), its own price per run, and settings worse than its best one. A run's
score is its true score at that fraction of training, plus the luck of its seed, plus the noise of the validation
examples.

The full grid runs every setting of every method to the end with three seeds and takes the highest mean. SuccessiveHalving gets a
third of that money. "Found": the winner is of the truly best method. Studies differ in how far the best method leads
the second best; where it leads by less than the noise of the grid itself, the grid fails as often.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from dollartune.schedule.successive_halving import Arm, JobOutcome, RaceJob, SuccessiveHalving

METHODS, SETTINGS, SEEDS = 8, 4, 3


class World:
    """The truth of one study.

    score(arm, f) = best_m - penalty_arm - gap_m * (f^-speed_m - 1) / 8, prices per full run by method.
    """

    def __init__(self, seed: int, lead: float, seed_noise: float = 0.006, examples: int = 1000) -> None:
        rng = np.random.default_rng(seed)
        self.rng, self.seed_noise, self.examples = np.random.default_rng(seed + 10**6), seed_noise, examples
        best = 0.86 - rng.exponential(0.03, METHODS) - lead
        best[0] = 0.86  # the lead is the distance to the best that the others can be
        order = rng.permutation(METHODS)
        self.best = best[order]
        penalty = rng.exponential(0.04, (METHODS, SETTINGS))
        penalty[np.arange(METHODS), rng.integers(0, SETTINGS, METHODS)] = 0
        self.penalty = penalty
        self.gap, self.speed = rng.uniform(0.05, 0.3, METHODS), rng.uniform(0.3, 0.8, METHODS)
        self.price = rng.uniform(60, 180, METHODS)
        self.arms = [Arm(str(m), {"setting": s}, s) for m in range(METHODS) for s in range(SETTINGS)]
        self.luck: dict[tuple[str, int], float] = {}

    def truth(self, arm: Arm, fraction: float = 1.0) -> float:
        m = int(arm.method)
        late = self.gap[m] * (fraction ** -self.speed[m] - 1) / 8
        return float(self.best[m] - self.penalty[m, arm.number] - late)

    def cost(self, job: RaceJob) -> float:
        """Without checkpoints: each rung trains from the start, and evaluation takes a tenth of a full run."""
        return float(self.price[int(job.arm.method)] * (0.9 * job.fraction + 0.1))

    def evaluate(self, job: RaceJob) -> JobOutcome:
        luck = self.luck.setdefault((job.arm.name, job.seed), self.rng.normal(0, self.seed_noise))
        truth = min(max(self.truth(job.arm, job.fraction) + luck, 0.01), 0.99)
        score = self.rng.binomial(self.examples, truth) / self.examples
        error = float(np.sqrt(score * (1 - score) / self.examples))
        return JobOutcome(float(score), self.cost(job) * self.rng.uniform(0.9, 1.1), error)

    def grid(self) -> tuple[Arm, float]:
        """The winner of the full grid, and its price."""
        runs = {arm: [self.evaluate(RaceJob(arm, 1.0, seed)) for seed in range(SEEDS)] for arm in self.arms}
        best = max(runs, key=lambda arm: sum(run.score or 0.0 for run in runs[arm]))
        return best, sum(run.seconds for outcomes in runs.values() for run in outcomes)


def simulate(studies: int, lead: float, share: float) -> dict[str, Any]:
    found = near = grid_found = 0
    shares, regrets = [], []
    for study in range(studies):
        world = World(study, lead)
        best = str(int(np.argmax(world.best)))
        chosen, price = World(study, lead).grid()
        full = sum(world.cost(RaceJob(arm, 1.0, seed)) for arm in world.arms for seed in range(SEEDS))
        race = SuccessiveHalving(world.arms, world.cost, full * share)
        winner = race.run(world.evaluate).arm
        regret = float(world.best.max()) - world.truth(winner)
        found += winner.method == best
        near += regret <= 0.01
        grid_found += chosen.method == best
        shares.append(race.spent_seconds / price)
        regrets.append(regret)
    return {
        "lead": lead, "budget share": share, "racing found": found / studies, "within one point": near / studies,
        "grid found": grid_found / studies, "mean share of the grid's money": float(np.mean(shares)),
        "largest share": float(np.max(shares)), "mean regret": float(np.mean(regrets)),
    }  # fmt: skip


HELD_OUT = 50_000
"""Seeds of worlds from here on were looked at by nobody who set a number of the race."""
SHARES = (0.05, 0.1, 0.2, 0.33, 0.5, 1.0)
"""Of the full grid's money."""
KEPT = 3
"""Plain successive halving goes on with a third of the settings at each rung, for three times as long (Jamieson and Talwalkar
2016)."""


def by_race(world: World, money: float) -> Arm:
    """What `SuccessiveHalving` chooses: the race of studies with one budget."""
    return SuccessiveHalving(world.arms, world.cost, money).run(world.evaluate).arm


def by_halving(world: World, money: float) -> Arm:
    """Plain successive halving: as many settings, drawn at random, as the money pays for; one seed."""
    order = [world.arms[n] for n in world.rng.permutation(len(world.arms))]
    for count in range(len(order), 0, -1):
        rungs = max(1, int(math.log(count, KEPT)) + 1)
        sizes = [max(1, count // KEPT**rung) for rung in range(rungs)]
        fractions = [KEPT ** (rung - rungs + 1.0) for rung in range(rungs)]
        mean = float(world.price.mean())
        if count == 1 or sum(n * mean * (0.9 * f + 0.1) for n, f in zip(sizes, fractions, strict=True)) <= money:
            break
    left, going = money, order[:count]
    for size, fraction in zip(sizes, fractions, strict=True):
        scores: dict[Arm, float] = {}
        for arm in going[:size]:
            job = RaceJob(arm, fraction, 0)
            if scores and world.cost(job) > left:
                break  # dearer settings than on average: what was scored decides
            outcome = world.evaluate(job)
            left -= outcome.seconds
            scores[arm] = outcome.score or 0.0
        going = sorted(scores, key=lambda arm: scores[arm], reverse=True)
    return going[0]


def by_chance(world: World, money: float) -> Arm:
    """Random search: settings in random order, each trained to its end, until the money is spent."""
    best, score, left = None, -1.0, money
    for number in world.rng.permutation(len(world.arms)):
        job = RaceJob(world.arms[number], 1.0, 0)
        if best is not None and world.cost(job) > left:
            break
        outcome = world.evaluate(job)
        left -= outcome.seconds
        if (outcome.score or 0.0) > score:
            best, score = job.arm, outcome.score or 0.0
    assert best is not None
    return best


SEARCHES = {"race": by_race, "successive halving": by_halving, "random search": by_chance}


def curves(studies: int, lead: float = 0.02) -> list[dict[str, Any]]:
    """Mean simple regret (best true score less that of what was chosen) and its standard error, at each share of the money."""
    rows = []
    for share in SHARES:
        row: dict[str, Any] = {"share of the grid's money": share}
        for name, search in SEARCHES.items():
            regrets = []
            for study in range(HELD_OUT, HELD_OUT + studies):
                world = World(study, lead)
                full = sum(world.cost(RaceJob(arm, 1.0, seed)) for arm in world.arms for seed in range(SEEDS))
                regrets.append(float(world.best.max()) - world.truth(search(world, share * full)))
            row[name], row[f"± {name}"] = float(np.mean(regrets)), float(np.std(regrets) / math.sqrt(studies))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--curves", action="store_true")
    arguments = parser.parse_args()
    if arguments.curves:
        print("| share | " + " | ".join(SEARCHES) + " |\n|---:|" + "---:|" * len(SEARCHES))
        for row in curves(arguments.studies):
            texts = [f"{row[name]:.4f} ± {row[f'± {name}']:.4f}" for name in SEARCHES]
            share = row["share of the grid's money"]
            print(f"| {share:.2f} | " + " | ".join(texts) + " |", flush=True)
        return
    rows = [
        simulate(arguments.studies, lead, share)
        for lead, share in ((0.0, 0.33), (0.01, 0.33), (0.02, 0.33), (0.03, 0.33), (0.02, 0.25), (0.02, 0.17))
    ]
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
