"""Probing and comparing on two real vLLM servers."""

import asyncio
from pathlib import Path

import pytest
import yaml

from fairlead.evaluate.live_tournament import Plan, rates, run_live_tournament
from fairlead.evaluate.results import load_results
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.serve.probe import probe, suggest
from fairlead.serve.settings import BackendSettings, parse_settings
from fairlead.train.config import TrainConfig
from fairlead.train.live import train_live
from fairlead.train.live_config import with_defaults
from fairlead.view.features import FEATURES
from fairlead.workload.scenario import load_scenario

pytestmark = pytest.mark.vllm

SCENARIO = """
replicas: [{device: a100-80g, count: 2}]
workload:
  arrivals: {kind: poisson}
  lengths: {kind: uniform, prompt: {min: 20, max: 200}, output: {min: 4, max: 20}}
"""


def test_what_a_probe_finds(servers):
    found = asyncio.run(probe([BackendSettings(url=server.url) for server in servers], measure=True))
    for each in found:
        assert not each.error and each.healthy and each.version
        assert each.models == {"tiny": 4096} and each.block_size == 32
        assert each.kv_capacity_tokens == 32 * (each.num_gpu_blocks or 0) > 4096
        assert each.prefix_caching is True and each.load == 0
        assert each.missing_metrics == []
        assert each.orca == ["num_requests_waiting", "kv_cache_usage_perc"]
        assert "max_num_seqs" in each.columns and "scraped_*" not in each.columns
        assert each.measured is not None and min(each.measured) > 0 and each.speed
        assert not {"speed", "prefill_tokens_per_s", "decode_iteration_s"} & set(each.columns)
    assert max(each.speed or 0.0 for each in found) == 1.0
    suggested = parse_settings(yaml.safe_load(suggest(found)), "suggested")
    assert all(b.kv_capacity_tokens and b.decode_iteration_s != 0.01 for b in suggested.backends)


def test_two_routers_on_the_same_requests(servers, tmp_path: Path):
    file = tmp_path / "tiny.yaml"
    file.write_text(SCENARIO)
    scenario = load_scenario(file)
    plan = Plan(scenario, rates(scenario, None, 4.0), (0, 1), 20)
    settings = parse_settings({"backends": [{"url": server.url} for server in servers]}, "test")
    run_live_tournament(plan, settings, ["lor", "random"], tmp_path / "live")
    results = load_results(tmp_path / "live")
    assert results.configuration.simulator == "live servers (2)"
    assert len(results.rows) == 4 and all(row.ttft_mean_s > 0 for row in results.rows)


def test_a_policy_is_fine_tuned(servers, tmp_path: Path):
    file = tmp_path / "tiny.yaml"
    file.write_text(SCENARIO)
    start, out = tmp_path / "start.onnx", tmp_path / "tuned"
    given = {
        "threads": 1,
        "start_from": str(start),
        "imitation": None,
        "ppo": {"iterations": 2, "critic_warmup_iterations": 1, "rollout_steps": 24, "minibatch": 12},
        "live": {"comparison_requests": 10, "comparison_seeds": 2},
    }
    config = TrainConfig.model_validate(with_defaults(given))
    network = RouterNetwork(len(FEATURES), **config.network_options(), seed=0)  # type: ignore[arg-type]
    export_onnx(network, start, config=config.model_dump(mode="json"), training={}, features=FEATURES)
    settings = parse_settings({"backends": [{"url": server.url} for server in servers]}, "test")
    result = train_live(config, load_scenario(file), settings, 4.0, out)
    assert result.training.decisions == 3 * 24 and not result.training.ended_early
    assert result.comparison is not None and result.comparison.mean > 0
    rows = load_results(out / "comparison").rows
    assert len(rows) == 6 and all(row.e2e_mean_s > row.ttft_mean_s > 0 for row in rows)
