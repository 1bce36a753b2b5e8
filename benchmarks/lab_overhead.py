"""What the lab costs: the share of a run that is neither loading the subject nor the study itself.

    python benchmarks/lab_overhead.py [PAPER] [-m MODEL] [--repeats 3]

Runs a study through the lab (journal, progress, verdicts, figures, files) in a fresh process each time, and prints medians. The study's own
time is what the bare computation takes: the same function, called by the lab. The goal is a share below 5 %. `each` is what one step of
progress costs the study, which may call it thousands of times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

PARTS = ("loading", "study", "statistics", "storing", "whole")


def measure(paper: str, model: str | None) -> dict[str, float]:
    """Run once in this process; seconds of each part."""
    import time

    from nullius.lab import runner, studies

    study = studies.get(paper)
    started = time.perf_counter()
    record = runner.run(study, model or study.subject).to_dict()
    whole = time.perf_counter() - started
    seconds = record["environment"]["seconds"]
    return {**seconds, "storing": whole - sum(seconds.values()), "whole": whole}


def step_cost(steps: int = 100_000) -> float:
    """Seconds that one report of progress takes, journalled."""
    import time

    from nullius.lab import Claim, Lab, above_control, journal, runner, study

    @study("steps", claims=(Claim("c", "w", above_control(), control="k"),))
    def nothing(lab: Lab) -> None:
        pass

    run_id = "0" * 26
    journal.begin_run({"id": run_id, "slug": "steps", "asked_subject": "none", "full": False, "seed": 0, "options": {}})
    with runner._Journalling(run_id, runner.Silent()) as progress:
        lab = Lab(nothing, None, listener=progress)  # type: ignore[arg-type]
        started = time.perf_counter()
        for _ in lab.progress(range(steps), "steps"):
            pass
        return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", nargs="?", default="factual-recall")
    parser.add_argument("-m", "--model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(measure(chosen.paper, chosen.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NULLIUS_DATA"] = folder
        command = [sys.executable, __file__, chosen.paper, "--once", *(["-m", chosen.model] if chosen.model else [])]
        runs = []
        for _ in range(chosen.repeats):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        each = step_cost()
    median = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    lab = median["statistics"] + median["storing"]
    print(f"{datetime.date.today()}  {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{chosen.paper}: medians of {chosen.repeats} runs, seconds")
    for part in PARTS:
        print(f"  {part:<11}{median[part]:9.2f}")
    print(
        f"  the lab    {lab:9.2f}   {lab / (lab + median['study']):.1%} of lab and study, {lab / median['whole']:.1%} of the whole (goal: < 5 %)"
    )
    print(f"  each step  {each * 1e6:9.1f} µs")


if __name__ == "__main__":
    main()
