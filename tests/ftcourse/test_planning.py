"""Hours and save intervals against arithmetic done by hand, and parameter counts against the models themselves."""

import math

import pytest
from peft import LoraConfig, get_peft_model

from ftcourse.planning import (
    HOUR,
    Cluster,
    Job,
    estimate_time,
    lora_parameters_of,
    parameters_of,
    tokens_per_second,
)
from ftkit.memory import published_meta_model

JOB = Job(conversations=1000, tokens=100, epochs=1.5, batch_size=64)


def test_steps_are_whole_and_cover_every_epoch():
    assert JOB.steps == math.ceil(1.5 * 16) and JOB.tokens_per_step == 6400


def test_a_full_step_costs_six_operations_per_parameter_and_token():
    cluster = Cluster(gpus=4, mfu=0.5, peak=1e12, write_rate=1e9, failures_apart=2 * HOUR)
    timing = estimate_time(10**9, 10**9, JOB, cluster)
    assert timing.step_seconds == pytest.approx(6e9 * 6400 / 2e12)
    assert timing.write_seconds == pytest.approx(12)
    assert timing.save_every == round(math.sqrt(2 * 12 * 2 * 3600) / timing.step_seconds)
    assert timing.hours == pytest.approx(24 * timing.step_seconds / 3600)
    assert tokens_per_second(timing.step_seconds, JOB, gpus=4) == pytest.approx(6400 / timing.step_seconds / 4)


def test_a_frozen_base_costs_four_and_saves_only_what_trains():
    cluster = Cluster(gpus=1, mfu=0.2, failures_apart=60.0)
    full, lora = (estimate_time(10**9, trained, JOB, cluster) for trained in (10**9, 10**6))
    assert lora.step_seconds / full.step_seconds == pytest.approx(4 / 6)
    assert lora.write_seconds == pytest.approx(full.write_seconds / 1000) and lora.save_every < full.save_every


def test_the_interval_is_a_whole_step_of_the_run():
    fast, slow = Cluster(gpus=1024, mfu=0.5), Cluster(gpus=1, mfu=0.01)
    assert estimate_time(10**9, 10**9, JOB, fast).save_every == JOB.steps
    assert estimate_time(7 * 10**10, 1, JOB, slow).save_every == 1


@pytest.mark.parametrize("trained", [0, 11])
def test_an_impossible_number_of_trained_parameters_is_refused(trained):
    with pytest.raises(ValueError, match="at least 1 and at most all"):
        estimate_time(10, trained, JOB, Cluster(gpus=1, mfu=0.2))


@pytest.mark.parametrize("name", ["llama-2-13b", "llama-3-8b", "llama-3-70b"])
def test_parameters_are_those_of_the_model(name):
    assert parameters_of(name) == sum(p.numel() for p in published_meta_model(name).parameters())


def test_adapter_parameters_are_those_of_peft():
    model = get_peft_model(published_meta_model("llama-3-8b"), LoraConfig(r=3, target_modules="all-linear"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters_of("llama-3-8b", 3) == trained
