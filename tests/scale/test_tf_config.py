"""TF_CONFIG: what is wrong with it is said before TensorFlow waits for anybody."""

import json

import pytest

from tf_lrtraj.training.strategies import StrategyError, make_strategy, read_tf_config

TWO = {"worker": ["a:1", "b:2"]}
FIRST = {"type": "worker", "index": 0}


def config(cluster, task):
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not set"),
        ("{", "not JSON"),
        ("[]", "groups `cluster` and `task`"),
        ('{"cluster": {"worker": ["a:1"]}}', "groups `cluster` and `task`"),
        (config({}, FIRST), "cluster is empty"),
        (config({"worker": []}, FIRST), "`cluster.worker` is empty"),
        (config({"chief": [], "worker": ["a:1"]}, FIRST), "`cluster.chief` is empty"),
        (config({"worker": ["a:99999"]}, FIRST), "ports from 1 to 65535"),
        (config({"worker": ["a:0"]}, FIRST), "ports from 1 to 65535"),
        (config({**TWO, "ps": ["c:3"]}, FIRST), "not 'ps'"),
        (config({"worker": "a:1"}, FIRST), "list of 'host:port'"),
        (config({"worker": ["a:1", "b"]}, FIRST), "list of 'host:port'"),
        (config({"worker": ["a:1", 7]}, FIRST), "list of 'host:port'"),
        (config({"chief": ["a:1", "b:2"]}, {"type": "chief", "index": 0}), "one chief only"),
        (config({"worker": ["a:1", "b:2", "a:1"]}, FIRST), r"\['a:1'\] occur twice"),
        (config({"chief": ["a:1"], "worker": ["a:1"]}, FIRST), r"\['a:1'\] occur twice"),
        (config(TWO, {"type": "evaluator", "index": 0}), "not 'evaluator'"),
        (config(TWO, {"type": "chief", "index": 0}), "not 'chief'"),
        (config(TWO, {"type": ["worker"], "index": 0}), r"not \['worker'\]"),
        (config(TWO, {"index": 0}), "not None"),
        (config(TWO, {"type": "worker", "index": 2}), "from 0 to 1, not 2"),
        (config(TWO, {"type": "worker", "index": -1}), "from 0 to 1, not -1"),
        (config(TWO, {"type": "worker", "index": "0"}), "not '0'"),
        (config(TWO, {"type": "worker", "index": True}), "not True"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_received(text, why, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(StrategyError, match=why) as error:
        make_strategy("multi_worker")
    assert f"TF_CONFIG={text!r}" in str(error.value)
    assert "on every worker" in str(error.value)


@pytest.mark.parametrize(
    ("cluster", "task"),
    [
        ({"worker": ["10.0.0.1:80", "host-2.example:65535"]}, ("worker", 1)),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 0)),
        ({"worker": ["[::1]:2222"]}, ("worker", 0)),
    ],
)
def test_what_is_right_is_read(cluster, task):
    text = config(cluster, {"type": task[0], "index": task[1]})
    assert read_tf_config(text) == (cluster, *task)


def test_a_waiting_time_must_be_positive():
    with pytest.raises(StrategyError, match=r"`join_timeout` must be an integer of at least 1.*=0"):
        make_strategy("multi_worker", join_timeout=0)
