"""Recurring runs: cron, no catching up, one at a time."""

from typing import Any

import pytest

from components.lib.contract import UserError
from pipelines import client
from pipelines.backend import schedules

from .test_submit import PASSING, VIDEOS, invoke


def test_a_schedule_runs_one_at_a_time_and_does_not_catch_up(kfp_server: Any, server: Any) -> None:
    made = client.create_schedule(server, "nightly", "tokenizer", "0 2 * * *", VIDEOS)
    stored = kfp_server.schedules[made.schedule_id]
    assert stored["no_catchup"] is True
    assert stored["max_concurrency"] in (1, "1")
    assert stored["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert stored["mode"] == "ENABLE"
    assert stored["pipeline_version_reference"]["pipeline_version_id"] in kfp_server.versions
    assert made.enabled and made.parameters == VIDEOS


def test_names_are_unique(kfp_server: Any, server: Any) -> None:
    client.create_schedule(server, "nightly", "tokenizer", "0 2 * * *", VIDEOS)
    with pytest.raises(UserError, match="There is a schedule 'nightly' already"):
        client.create_schedule(server, "nightly", "tokenizer", "0 3 * * *", VIDEOS)
    assert len(kfp_server.schedules) == 1


def test_a_lost_answer_makes_no_second_schedule(kfp_server: Any, server: Any) -> None:
    kfp_server.fail("POST", "/recurringruns", 504, after=True)
    client.create_schedule(server, "nightly", "tokenizer", "0 2 * * *", VIDEOS)
    assert len(kfp_server.schedules) == 1


@pytest.mark.parametrize("status", PASSING)
def test_passing_errors_pass(kfp_server: Any, server: Any, status: Any) -> None:
    kfp_server.fail("GET", "/recurringruns", status)
    made = client.create_schedule(server, "nightly", "tokenizer", "0 2 * * *", VIDEOS)
    stored = kfp_server.schedules[made.schedule_id]
    kfp_server.fail("POST", ":disable", status)
    client.pause_schedule(server, "nightly")
    assert stored["status"] == "DISABLED"
    kfp_server.fail("POST", ":enable", status)
    client.resume_schedule(server, "nightly")
    assert stored["status"] == "ENABLED"
    kfp_server.fail("DELETE", "/recurringruns", status)
    client.delete_schedule(server, "nightly")
    assert kfp_server.schedules == {}


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "You may not do that in namespace"), (404, "Check the name"), (410, "answers 410")],
)
def test_refusals_say_what_was_asked(kfp_server: Any, server: Any, status: Any, words: Any) -> None:
    client.create_schedule(server, "nightly", "tokenizer", "0 2 * * *", VIDEOS)
    kfp_server.fail("POST", ":disable", status)
    with pytest.raises(UserError, match=f"Pausing 'nightly'.*{words}"):
        client.pause_schedule(server, "nightly")


def test_many_schedules_are_all_listed(kfp_server: Any, server: Any) -> None:
    names = [f"s{index}" for index in range(5)]
    for name in names:
        client.create_schedule(server, name, "tokenizer", "0 2 * * *", VIDEOS)
    assert [schedule.name for schedule in client.list_schedules(server)] == names


def test_pause_resume_delete_by_name(kfp_server: Any) -> None:
    created = invoke("schedule", "create", "nightly", "tokenizer", "--cron", "30 2 * * 1-5",
                     "-p", "videos=s3://a/b")  # fmt: skip
    assert created.exit_code == 0, created.output
    identity = created.output.splitlines()[0]
    assert "nightly  on  0 30 2 * * 1-5" in invoke("schedule", "list").output
    assert invoke("schedule", "pause", "nightly").exit_code == 0
    assert kfp_server.schedules[identity]["status"] == "DISABLED"
    assert "paused" in invoke("schedule", "list").output
    assert invoke("schedule", "resume", identity).exit_code == 0
    assert kfp_server.schedules[identity]["status"] == "ENABLED"
    assert invoke("schedule", "delete", "nightly").exit_code == 0
    assert kfp_server.schedules == {}
    missing = invoke("schedule", "pause", "nightly")
    assert "There is no schedule 'nightly'. There are: none" in str(missing.exception)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("*/15 * * * *", "0 */15 * * * *"),
        ("10 0 3 * * MON-FRI", "10 0 3 * * MON-FRI"),
        ("0 0 1,15 * ?", "0 0 0 1,15 * ?"),
    ],
)
def test_five_fields_become_six(cron: Any, expected: Any) -> None:
    assert schedules.six_fields(cron) == expected


@pytest.mark.parametrize("cron", ["daily", "61 3 * * *", "0 3 * *", "0 0 0 3 * * *", "0 3 * 13 *"])
def test_bad_cron_expressions_are_refused(cron: Any) -> None:
    with pytest.raises(UserError, match="cron expression"):
        schedules.six_fields(cron)


@pytest.mark.parametrize("pipeline", ["fleet", "fleet-tokenizer"])
def test_fleet_retraining_is_scheduled_and_submitted_like_the_others(
    kfp_server: Any, server: Any, pipeline: str
) -> None:
    form = {**VIDEOS, "min_new_videos": 50, "old_per_new": 0.25}
    made = client.create_schedule(server, "nightly", pipeline, "0 2 * * *", form)
    assert kfp_server.schedules[made.schedule_id]["runtime_config"]["parameters"] == form
    run = client.submit(server, pipeline, form)
    assert kfp_server.runs[run.run_id]["runtime_config"]["parameters"] == form
    assert len(kfp_server.versions) == 1
    with pytest.raises(UserError, match="'min_new_videos' must be a integer"):
        client.submit(server, pipeline, {**VIDEOS, "min_new_videos": "many"})
