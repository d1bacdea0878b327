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
from anytime import SimulatedRun, handed_over

from dollartune.schedule.successive_halving import Arm, JobOutcome, RaceJob, SuccessiveHalving

METHODS, SETTINGS, SEEDS = 8, 4, 3
RULE_IS_RIGHT = 0.5
"""Of informed worlds: how often the method that a rule names is the best one, and a method's first setting its best."""


class World:
    """The truth of one study.

    score(arm, f) = best_m - penalty_arm - gap_m * (f^-speed_m - 1) / 8, prices per full run by method.
    """

    def __init__(
        self, seed: int, lead: float, seed_noise: float = 0.006, examples: int = 1000, informed: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rng, self.seed_noise, self.examples = np.random.default_rng(seed + 10**6), seed_noise, examples
        best = 0.86 - rng.exponential(0.03, METHODS) - lead
        best[0] = 0.86  # the lead is the distance to the best that the others can be
        order = rng.permutation(METHODS)
        self.best = best[order]
        penalty = rng.exponential(0.04, (METHODS, SETTINGS))
        fitting = rng.integers(0, SETTINGS, METHODS)
        if informed:
            # As in docs/results: the rule's first method and its first settings are the best of all in about half of the cases.
            if rng.random() < RULE_IS_RIGHT:
                best_of_all = int(np.argmax(self.best))
                self.best[[0, best_of_all]] = self.best[[best_of_all, 0]]
            fitting = np.where(rng.random(METHODS) < RULE_IS_RIGHT, 0, fitting)
        penalty[np.arange(METHODS), fitting] = 0
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

    def training(self, method: int, setting: int, seed: int) -> SimulatedRun:
        """What training an arm with a seed gives, for the anytime policy."""
        arm = self.arms[method * SETTINGS + setting]
        luck = self.luck.setdefault((arm.name, seed), self.rng.normal(0, self.seed_noise))

        def score(fraction: float) -> tuple[float, float]:
            truth = min(max(self.truth(arm, min(1.0, fraction)) + luck, 0.01), 0.99)
            seen = self.rng.binomial(self.examples, truth) / self.examples
            return float(seen), float(np.sqrt(seen * (1 - seen) / self.examples))

        price = float(self.price[method])
        loss = lambda fraction: 1 - self.truth(arm, min(1.0, fraction)) - luck  # noqa: E731
        return SimulatedRun(score, loss, 0.9 * price, 0.1 * price)

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


RESULTS = Path(__file__).parent / "results" / "racing.json"
"""Rows of the curves as they come; of a changed policy it must be deleted."""
HELD_OUT = 50_000
"""Seeds of worlds from here on were looked at by nobody who set a number of the race."""
SHARES = (0.05, 0.1, 0.2, 0.33, 0.5, 1.0)
"""Of the full grid's money."""
KEPT = 3
"""Plain successive halving goes on with a third of the settings at each rung, for three times as long (Jamieson and Talwalkar
2016)."""


Chosen = tuple[Arm, float]
"""What comes out: an arm, and how long it was trained, of a whole training."""


def by_race(world: World, money: float) -> Chosen:
    """What `SuccessiveHalving` chooses: the race of studies with one budget."""
    return SuccessiveHalving(world.arms, world.cost, money).run(world.evaluate).arm, 1.0


def by_anytime(world: World, money: float) -> Chosen:
    """What the scheduler of `tune` hands over, with the length that it was trained for; it solves no probe here."""
    found = handed_over(world.training, money, 0.1 * float(world.price.mean()) / world.examples)
    if found is None:  # then nothing better than the first arm after a tenth of a training
        return world.arms[0], 0.1
    method, setting, length = found
    return world.arms[method * SETTINGS + setting], min(1.0, length)


def by_halving(world: World, money: float) -> Chosen:
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
    return going[0], 1.0


def by_chance(world: World, money: float) -> Chosen:
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
    return best, 1.0


SEARCHES = {"anytime": by_anytime, "race": by_race, "successive halving": by_halving, "random search": by_chance}


def curves(studies: int, informed: bool, lead: float = 0.02) -> list[dict[str, Any]]:
    """Mean simple regret (best true score less that of what came out) and its standard error, at each share of the money.

    Rows are kept as they come, so that a run that was stopped goes on.
    """
    rows = []
    for share in SHARES:
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        key = f"{studies} studies, lead {lead}, {'informed' if informed else 'neutral'}, share {share}"
        if key not in kept:
            kept[key] = _regrets(studies, informed, lead, share)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{key}: {kept[key]}", flush=True)
        rows.append(kept[key])
    return rows


def _regrets(studies: int, informed: bool, lead: float, share: float) -> dict[str, Any]:
    row: dict[str, Any] = {"share of the grid's money": share}
    for name, search in SEARCHES.items():
        regrets = []
        for study in range(HELD_OUT, HELD_OUT + studies):
            world = World(study, lead, informed=informed)
            full = sum(world.cost(RaceJob(arm, 1.0, seed)) for arm in world.arms for seed in range(SEEDS))
            regrets.append(float(world.best.max()) - world.truth(*search(world, share * full)))
        row[name], row[f"± {name}"] = float(np.mean(regrets)), float(np.std(regrets) / math.sqrt(studies))
    return row


def curve_table(rows: list[dict[str, Any]]) -> str:
    """As Markdown; the lowest of each row, and what its error does not tell from it, in bold."""
    lines = ["| share of the grid's money | " + " | ".join(SEARCHES) + " |", "|---:|" + "---:|" * len(SEARCHES)]
    for row in rows:
        texts = [f"{row[name]:.4f} ± {row[f'± {name}']:.4f}" for name in SEARCHES]
        texts = [f"**{t}**" if _is_lowest(row, name) else t for name, t in zip(SEARCHES, texts, strict=True)]
        share = row["share of the grid's money"]
        lines.append(f"| {share:.2f} | " + " | ".join(texts) + " |")
    counted = [f"{name} {sum(_is_lowest(row, name) for row in rows)}" for name in SEARCHES]
    return "\n".join(
        [*lines, "", f"Lowest, or not told from it, at so many of {len(rows)} budgets: {', '.join(counted)}."]
    )


def _is_lowest(row: dict[str, Any], name: str) -> bool:
    """Whether a search has the lowest regret, or one that two standard errors do not tell from it."""
    lowest = min(SEARCHES, key=lambda other: float(row[other]))
    return bool(row[name] - row[lowest] <= 2 * math.hypot(row[f"± {name}"], row[f"± {lowest}"]))


def page(tables: dict[bool, str], studies: int) -> str:
    """The curves as a page of the site."""
    return f"""# Regret against money, simulated

Made by `python bench/racing.py --page docs/results/racing.md --studies {studies}`: studies of {METHODS} methods with {SETTINGS}
settings each, whose truth is known; learning curves that cross, prices that differ, seeds and validation rows that add luck. The
figures are the simple regret: the best true score of all less that of what came out, as long as it was trained, with its standard
error over the studies. In bold: the lowest, and what two standard errors do not tell from it. The grid trains every setting to
its end with {SEEDS} seeds. These worlds are held out: the numbers of the race
were set on others of the first kind.

- *anytime*: the scheduler of `tune` itself; there is no solved probe in these worlds, and it hands over what it has trained. Its
  first adapter is a short run of what the rule names, which tells what a step takes too. Where the rest pays for two whole
  runs, it races all settings, this one among them: fifty steps (a sixth of a whole run here), then the better ones whole, each
  method's best before second settings, the closest with further seeds. With less money what the rule names is trained whole.
- *race*: `SuccessiveHalving`, the race of a study with one budget.
- *successive halving*: as many settings, drawn at random, as the money pays for, a third at each rung, once and with one seed;
  *random search*: settings in random order, each trained to its end.

## Nobody knows anything beforehand

The method that a rule would begin with is the best no more often than any other.

{tables[False]}

## The rule is right in half of the studies

In half of the studies the method that the rule names is made the best one, and with half of the methods the first setting; in the
others they may be so by chance. The race begins at first settings too; the other two do not look at them.

{tables[True]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--page", type=Path, help="write the curves as a page of the site")
    arguments = parser.parse_args()
    if arguments.curves or arguments.page is not None:
        tables = {informed: curve_table(curves(arguments.studies, informed)) for informed in (False, True)}
        written = page(tables, arguments.studies)
        print(written)
        if arguments.page is not None:
            arguments.page.write_text(written)
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
