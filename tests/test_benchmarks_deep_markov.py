"""The benchmark of the deep Markov model runs, and its two estimates are what they say."""

import json
import sys

import pyro
import pytest
import torch

from benchmarks import deep_markov
from ppl_models.simulation import own_stream


@pytest.fixture
def chorales(tmp_path):
    """Pieces of three to six chords, the same two in turn."""
    chords = [[60, 64, 67], [62, 65, 69]]
    parts = {
        part: [[chords[(i + t) % 2] for t in range(3 + i % 4)] for i in range(num)]
        for part, num in (("train", 30), ("valid", 6), ("test", 8))
    }
    path = tmp_path / "chorales.json"
    path.write_text(json.dumps(parts))
    return path


def test_it_trains_and_reports(chorales, capsys, monkeypatch, restore_dtype):
    sizes = ["--num-latents", "4", "--hidden", "8", "--rnn-hidden", "8", "--num-samples", "40"]
    monkeypatch.setattr(
        sys, "argv", ["deep_markov", str(chorales), "--num-epochs", "12", "--batch-size", "5", "--lr", "0.03", *sizes]
    )
    with pyro.get_param_store().scope(), own_stream(1):
        deep_markov.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.count("|") == 5}
    for part in ("train", "valid", "test"):
        bound, estimate, error = (float(cell) for cell in rows[part][:3])
        assert 0 < estimate < bound + 3 * error + 0.02  # importance sampling is above the bound
        assert error > 0
        assert bound < 40  # it starts at 88 log 2 = 61 and more
    curve = [
        float(line.split("|")[2]) for line in lines if line.count("|") == 3 and line.split("|")[1].strip().isdigit()
    ]
    assert len(curve) == 12
    assert curve[-1] < curve[0]


def test_importance_sampling_of_sequences_without_a_latent_influence_is_exact(restore_dtype):
    """With an emitter that ignores the state the likelihood is that of coins, and the guide only adds noise."""
    torch.set_default_dtype(torch.float32)
    x = torch.bernoulli(torch.full((3, 4, 5), 0.3), generator=torch.Generator().manual_seed(1))
    part = x, torch.tensor([4, 2, 3])
    settings = {"num_latents": 1, "hidden": 3, "rnn_hidden": 3}
    with pyro.get_param_store().scope(), own_stream(1):
        torch.set_default_dtype(torch.float32)
        deep_markov.bound(part, settings)
        store = pyro.get_param_store()
        untrained = deep_markov.importance_sampled(part, settings, 4000)[0]
        store["emitter.4.weight"] = torch.zeros(5, 3)
        store["emitter.4.bias"] = torch.full((5,), 0.3).logit()
        estimate, error = deep_markov.importance_sampled(part, settings, 4000)
    seen = torch.arange(4) < part[1].unsqueeze(-1)
    coins = -(x * torch.tensor(0.3).log() + (1 - x) * torch.tensor(0.7).log()).sum(-1)[seen].mean().item()
    assert abs(estimate - coins) < 4 * error
    assert untrained > coins + 0.3  # control
    assert error < 0.02
