"""A study made by several processes, each for one seed."""

import concurrent.futures
import threading

import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import problem, run_study
from tf_lrtraj.study import session as sessions
from tf_lrtraj.study import task_plan as plans
from tf_lrtraj.study.study_config import default_config
from tf_lrtraj.study.task import Task


@pytest.fixture
def scale(monkeypatch, tmp_path):
    """Two seeds of tasks that take no time, and a log of what was made."""
    config = default_config()
    config.seeds = 2
    made = []

    def make(name):
        def run(session, seed):
            made.append((name, seed))
            session.store(name, seed, [{"value": seed}])

        return run

    tasks = [
        Task("levels", make("levels"), "one"),
        Task("decays", make("decays"), "two", after=("levels",)),
        Task("across", make("across"), "all seeds", across=True),
    ]
    images = np.zeros((1000, 8, 8, 1), np.float32), np.zeros(1000, np.int32)
    small = problem.Problem(*images, *images, 10)
    monkeypatch.setattr(plans, "TASKS", tasks)
    monkeypatch.setattr(sessions, "load_problem", lambda config: small)
    monkeypatch.setattr(run_study, "write_results", lambda folder: folder / "report.html")
    plain = run_study.prepare(config, tmp_path)

    def run(**given):
        return run_study.run(plain, tmp_path, tell=str, progress=False, **given)

    run.made, run.folder, run.config = made, tmp_path, plain
    return run


def test_one_seed_after_the_other_then_what_reads_both(scale):
    assert scale(only_seed=1) is None
    assert scale.made == [("levels", 1), ("decays", 1)]
    assert scale(only_seed=0) is None
    state = records.read_json(scale.folder / "run.json")
    assert state["done"] == {"levels": [0, 1], "decays": [0, 1]} and state["status"] == "incomplete"
    scale.made.clear()
    assert scale() == scale.folder / "report.html"
    assert scale.made == [("across", 0), ("across", 1)]
    assert records.read_json(scale.folder / "run.json")["status"] == "done"


def test_notes_made_at_the_same_moment_are_all_kept(scale):
    scale(only_seed=0)
    both = threading.Barrier(2)

    def note(seed):
        for number in range(20):
            both.wait(timeout=60)
            made = (f"task{number}", seed, 1.0)
            run_study._note(scale.config, scale.folder, status="incomplete", made=made)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # threads stand for processes
        list(pool.map(note, range(2)))
    state = records.read_json(scale.folder / "run.json")
    expected = {f"task{number}": [0, 1] for number in range(20)}
    assert state["done"] == {"levels": [0], "decays": [0], **expected}
    assert all(set(of) == {"0", "1"} for name, of in state["seconds"].items() if name in expected)


def test_a_seed_at_work_is_left_alone(scale):
    scale(only_seed=0)
    with records.only_writer(scale.folder, shared=True):
        with records.only_writer(scale.folder / "state/seed0"):
            with pytest.raises(records.RecordError, match="another process is writing"):
                scale(only_seed=0)
            scale(only_seed=1)
        with pytest.raises(records.RecordError, match="another process is writing"):
            scale()
    scale()


@pytest.mark.parametrize("seed", [-1, 2])
def test_seeds_that_there_are_not(scale, seed):
    with pytest.raises(ConfigError, match=f"of at least 0 and below 2. Received: only_seed={seed}"):
        scale(only_seed=seed)
    assert not (scale.folder / "run.json").exists()
