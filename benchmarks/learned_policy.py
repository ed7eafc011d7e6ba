"""The learned policy against every other router, over several training seeds: writes docs/results.md.

    python benchmarks/learned_policy.py --out runs/learned --page docs/results.md --picture docs/frontier.svg

For each training seed a policy is trained as in `make demo`, and another one from scratch (PPO alone). All of
them and every heuristic then serve the same unseen requests. A learned policy's number is the mean over the
training seeds; its interval (Student's t, 95 %) is over them too, each averaged over the evaluation seeds.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from scipy import stats

from fairlead import __version__
from fairlead.evaluate.results import Results, load_results
from fairlead.evaluate.tournament import run_tournament
from fairlead.policy.catalogue import ALL_HEURISTICS
from fairlead.train.config import TrainConfig
from fairlead.train.run import train
from fairlead.workload.scenario import load_scenario

SCENARIOS = ("chat-equal", "chat-unequal")
METRICS = {
    "e2e_mean_s": "mean E2E",
    "ttft_mean_s": "mean TTFT",
    "e2e_p99_s": "p99 E2E",
    "ttft_p99_s": "p99 TTFT",
}
DIALS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHOSEN = {"chat-equal": 0.75, "chat-unequal": 0.0}
"""The setting of the dial that the summary judges each scenario by: one policy, one number per cluster."""


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def train_all(out: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """Policies by name (`warm-0`, `scratch-0`, ...), each with what its training took."""
    runs: dict[str, dict[str, Any]] = {}
    scenarios = [load_scenario(name) for name in SCENARIOS]
    for seed in range(seeds):
        warm = TrainConfig(seed=seed)
        for name, config in ((f"warm-{seed}", warm), (f"scratch-{seed}", warm.from_scratch())):
            policy, summary = out / f"{name}.onnx", out / f"{name}.json"
            if not summary.exists():
                say(f"training {name}")
                folder = out / "training" / name
                shutil.rmtree(folder, ignore_errors=True)
                milestones: list[str] = []
                started = time.monotonic()
                result = train(config, scenarios, folder, say=milestones.append)
                shutil.copy(result.policy, policy)
                record = {
                    "seconds": time.monotonic() - started,
                    "decisions": result.decisions,
                    "validation": result.objective,
                    "chosen_after_iteration": result.iteration,
                    "history": result.history,
                    "milestones": milestones,
                    "seconds_by_phase": result.seconds_by_phase,
                }
                summary.write_text(json.dumps(record, indent=1))
            runs[name] = json.loads(summary.read_text())
            say(f"{name}: {' '.join(runs[name]['milestones'])}")
    return runs


def tournament(out: Path, policies: list[str], seeds: int, requests: int) -> Results:
    """Every heuristic, lookahead and every policy at every dial, on the same requests."""
    folder = out / "evaluation"
    if not (folder / "results.json").exists():
        routers = [name for name in ALL_HEURISTICS if name != "lookahead"]
        routers += [
            f"{name}@{dial:g}"
            for dial in DIALS
            for name in ("lookahead", *(out / f"{p}.onnx" for p in policies))
        ]
        say(f"evaluating {len(routers)} routers")
        run_tournament(
            [load_scenario(n) for n in SCENARIOS], None, routers, range(100, 100 + seeds), requests, folder
        )
    return load_results(folder)


def learned(
    results: Results, kind: str, dial: float, seeds: int, scenario: str, load: float, metric: str
) -> np.ndarray:
    """One value per training seed: the mean over the evaluation seeds."""
    names = [f"{kind}-{seed}@{dial:g}" for seed in range(seeds)]
    return np.array([np.mean(results.values(scenario, load, name, metric)) for name in names])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over training seeds."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def summarise(results: Results, seeds: int) -> dict[str, Any]:
    """All numbers of the page."""
    cells = []
    for scenario, load in results.configuration.settings:
        heuristics = {
            name: {m: float(np.mean(results.values(scenario, load, name, m))) for m in METRICS}
            for name in results.configuration.names("heuristic")
        }
        look = {
            dial: {
                m: float(np.mean(results.values(scenario, load, f"lookahead@{dial:g}", m))) for m in METRICS
            }
            for dial in DIALS
        }
        policies = {
            kind: {
                dial: {m: interval(learned(results, kind, dial, seeds, scenario, load, m)) for m in METRICS}
                for dial in DIALS
            }
            for kind in ("warm", "scratch")
        }
        cells.append(
            {"scenario": scenario, "load": load, "heuristics": heuristics, "lookahead": look, **policies}
        )
    pooled = {}
    for scenario in SCENARIOS:
        loads = results.configuration.loads[scenario]
        runs = {
            m: np.mean([learned(results, "warm", CHOSEN[scenario], seeds, scenario, x, m) for x in loads], 0)
            for m in ("e2e_mean_s", "ttft_mean_s")
        }
        pooled[scenario] = {m: interval(values) for m, values in runs.items()}
    return {"cells": cells, "all_loads": pooled}


def relative(value: float, reference: float) -> str:
    """The change from `reference` to `value`, in percent."""
    return f"{100 * (value / reference - 1):+.1f} %"


def table(cell: dict[str, Any]) -> list[str]:
    """One setting as a Markdown table."""
    best = {m: min(h[m] for h in cell["heuristics"].values()) for m in METRICS}
    lines = ["| router | " + " | ".join(METRICS.values()) + " |", "|---|" + "---|" * len(METRICS)]
    for name, values in cell["heuristics"].items():
        lines.append(
            f"| {name} | "
            + " | ".join(f"{values[m]:.3f} ({relative(values[m], best[m])})" for m in METRICS)
            + " |"
        )
    for dial, values in cell["lookahead"].items():
        lines.append(
            f"| *lookahead*, favor {dial:g} | "
            + " | ".join(f"{values[m]:.3f} ({relative(values[m], best[m])})" for m in METRICS)
            + " |"
        )
    for kind, label in (("warm", "**learned**"), ("scratch", "PPO from scratch")):
        for dial, values in cell[kind].items():
            texts = []
            for m in METRICS:
                mean, low, high = values[m]
                ends = f"{relative(low, best[m])} to {relative(high, best[m])}"
                texts.append(f"{mean:.3f} ({relative(mean, best[m])}; {ends})")
            lines.append(f"| {label}, favor {dial:g} | " + " | ".join(texts) + " |")
    return lines


def verdicts(summary: dict[str, Any]) -> list[str]:
    """Who wins where, at the chosen setting of the dial."""
    lines = []
    for cell in summary["cells"]:
        dial = CHOSEN[cell["scenario"]]
        values = cell["warm"][dial]
        parts = []
        for m in ("e2e_mean_s", "ttft_mean_s"):
            name, best = min(((n, h[m]) for n, h in cell["heuristics"].items()), key=lambda item: item[1])
            mean, low, high = values[m]
            word = (
                "better than" if high < best else "worse than" if low > best else "not distinguishable from"
            )
            parts.append(
                f"{METRICS[m]} {word} the best heuristic there ({name}): {relative(mean, best)} "
                f"[{relative(low, best)}, {relative(high, best)}]"
            )
        rival = min(cell["heuristics"], key=lambda n: cell["heuristics"][n]["e2e_mean_s"])
        ttft = cell["heuristics"][rival]["ttft_mean_s"]
        parts.append(f"mean TTFT against {rival}: {relative(values['ttft_mean_s'][0], ttft)}")
        lines.append(
            f"- **{cell['scenario']}, load {cell['load']:g}, favor {dial:g}**: " + "; ".join(parts) + "."
        )
    for scenario in SCENARIOS:
        cells = [c for c in summary["cells"] if c["scenario"] == scenario]
        dial = CHOSEN[scenario]
        means = {
            m: {n: np.mean([c["heuristics"][n][m] for c in cells]) for n in cells[0]["heuristics"]}
            for m in ("e2e_mean_s", "ttft_mean_s")
        }
        rival = min(means["e2e_mean_s"], key=lambda n: means["e2e_mean_s"][n])
        parts = []
        for m in ("e2e_mean_s", "ttft_mean_s"):
            mean, low, high = summary["all_loads"][scenario][m]
            reference = means[m][rival]
            parts.append(
                f"{METRICS[m]} {relative(mean, reference)} [{relative(low, reference)}, "
                f"{relative(high, reference)}]"
            )
        look = np.mean([c["lookahead"][dial]["e2e_mean_s"] for c in cells])
        lines.append(
            f"- **{scenario}, all loads together, favor {dial:g}**, against the heuristic with the best mean "
            f"E2E ({rival}): {' and '.join(parts)}; mean E2E against lookahead at the same setting: "
            f"{relative(summary['all_loads'][scenario]['e2e_mean_s'][0], look)}."
        )
    return lines


def page(summary: dict[str, Any], runs: dict[str, Any], results: Results, seeds: int) -> str:
    """docs/results.md."""
    configuration = results.configuration
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/learned_policy.py`; every number on this page comes from that run.",
        "",
        f"Fairlead {__version__}, {platform.machine()}, {os.cpu_count()} cores. {seeds} training seeds; "
        f"{len(configuration.seeds)} evaluation seeds of {configuration.requests} requests each, which no "
        f"training saw; configuration {results.configuration_hash}. Times in seconds. In brackets: the "
        "difference to the best heuristic for that metric (`lookahead` aside) and, for learned policies, its "
        "95 % interval over the training seeds.",
        "",
        "One policy serves both clusters; its dial `favor` is set when it is used: "
        + ", ".join(f"{dial:g} on {name}" for name, dial in CHOSEN.items())
        + " in the summary below.",
        "",
        "## Summary",
        "",
        *verdicts(summary),
        "",
        "## Training",
        "",
        "| run | decisions | time | objective (1 = best heuristic) | milestone |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {run['decisions']:,} | {run['seconds']:.0f} s | {run['validation']:.4f} | "
            f"{run['milestones'][0] if run['milestones'] else ''} |"
            for name, run in runs.items()
        ),
        "",
    ]
    for cell in summary["cells"]:
        lines += [f"## {cell['scenario']} at {100 * cell['load']:.0f} % of capacity", "", *table(cell), ""]
    return "\n".join(lines)


def picture(summary: dict[str, Any], path: Path) -> None:
    """Mean TTFT against mean E2E: each heuristic is a point, lookahead and the learned policy are curves."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "fairlead"
    from matplotlib import pyplot

    shown = [("chat-equal", 0.9), ("chat-unequal", 0.7)]
    cells = {(c["scenario"], c["load"]): c for c in summary["cells"]}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, key in zip(axes, shown, strict=True):
        cell = cells[key]
        least = {m: min(h[m] for h in cell["heuristics"].values()) for m in METRICS}
        labels: dict[tuple[float, float], list[str]] = {}
        for name, values in cell["heuristics"].items():
            x, y = values["e2e_mean_s"], values["ttft_mean_s"]
            if x > 1.4 * least["e2e_mean_s"] or y > 2.2 * least["ttft_mean_s"]:
                continue  # random and round robin would squeeze everything else into a corner
            axis.plot(x, y, "o", color="#777777")
            # Points that lie on each other share a label.
            near = [p for p in labels if abs(p[0] / x - 1) < 0.02 and abs(p[1] / y - 1) < 0.02]
            labels.setdefault(near[0] if near else (x, y), []).append(name)
        for point, names in labels.items():
            text = ", ".join(names)
            axis.annotate(
                text, point, xytext=(-3, 7), textcoords="offset points", fontsize=8, color="#444444"
            )
        axis.margins(x=0.14)
        look = [cell["lookahead"][dial] for dial in DIALS]
        warm = [cell["warm"][dial] for dial in DIALS]
        axis.plot(
            [v["e2e_mean_s"] for v in look],
            [v["ttft_mean_s"] for v in look],
            "--",
            color="#bb8800",
            label="lookahead (the teacher)",
        )
        axis.plot(
            [v["e2e_mean_s"][0] for v in warm],
            [v["ttft_mean_s"][0] for v in warm],
            "o-",
            color="#0055bb",
            label="learned, one policy, dial from 0 to 1",
        )
        axis.set(
            title=f"{key[0]}, {100 * key[1]:.0f} % of capacity", xlabel="mean E2E, s", ylabel="mean TTFT, s"
        )
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/learned"),
        help="policies and results; goes on where it stopped",
    )
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--evaluation-seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--page", type=Path, help="write the results page here, for example docs/results.md")
    parser.add_argument("--picture", type=Path, help="draw the frontier here, for example docs/frontier.svg")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = train_all(options.out, options.seeds)
    results = tournament(options.out, list(runs), options.evaluation_seeds, options.requests)
    summary = summarise(results, options.seeds)
    if options.page:
        options.page.write_text(page(summary, runs, results, options.seeds), encoding="utf-8")
        say(f"wrote {options.page}")
    if options.picture:
        picture(summary, options.picture)
        say(f"wrote {options.picture}")
    if options.json:
        print(json.dumps({"runs": runs, **summary}, indent=1))
    else:
        print("\n".join(verdicts(summary)))


if __name__ == "__main__":
    main()
