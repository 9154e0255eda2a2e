"""The stored plans of notebook 16: one is estimated again, and a record of another plan is refused."""

import json
import random

import pytest

from ftcourse.studies import launch_plans
from ftcourse.studies.launch_plans import CAPACITY, FILE, LARGE, PLANS, SMALL, estimate, fits, name_of, plan_of


def test_one_of_the_records_drawn_at_random_is_estimated_again():
    name = random.choice([name for name, (model, _) in PLANS.items() if model == SMALL])
    assert estimate(name) == launch_plans.read_plans()[name], name


def test_a_record_of_another_plan_is_refused(tmp_path):
    records = json.loads(FILE.read_text())
    records["8B, 8 GPUs, full"]["changes"]["micro_batch_size"] = 3
    (tmp_path / "plans.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="no record of '8B, 8 GPUs, full' as it is planned"):
        launch_plans.read_plans(tmp_path / "plans.json")


def test_every_plan_is_found_by_its_settings_and_no_other():
    assert [name_of(plan_of(name), PLANS[name][0]) for name in PLANS] == list(PLANS)
    with pytest.raises(ValueError, match="no estimate of llama-3-70b is stored"):
        name_of(plan_of("8B, 4 nodes, full"), LARGE)


def test_a_plan_fits_with_a_tenth_to_spare():
    assert fits(int(0.89 * CAPACITY)) and not fits(int(0.91 * CAPACITY))
