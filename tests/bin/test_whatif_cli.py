"""The command line of forecasts: a curve's file, its mistakes by line and column, what is written.

Everything about a curve alone runs without TensorFlow.
"""

import numpy as np
import pytest
from helpers import run_without_keras

from tf_lrtraj.bin import curve_files
from tf_lrtraj.report import decay_figure


def invoke(*commands):
    return run_without_keras("whatif", *commands)


def write_curve(path, rate=True):
    steps = np.arange(200, 20_001, 200)
    losses = 2.9 + 8.0 * steps**-0.35
    lines = ["step,loss,learning_rate,average_4000" if rate else "step,loss,average_4000"]
    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
        average = f"{loss - 0.12:.5f}" if step % 4000 == 0 else ""
        lines.append(f"{step},{loss:.5f}," + ("0.001," if rate else "") + average)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_answers_table_record_and_figure(tmp_path):
    curve = write_curve(tmp_path / "curve.csv")
    bare = write_curve(tmp_path / "bare.csv", rate=False)
    record, figure = tmp_path / "answers.json", tmp_path / "answers.svg"
    asked = [
        f"--curve={curve}",
        "--decay=linear:4000",
        "--decay=one_minus_sqrt:2000:16000",
        "--decay=cosine:15000:20000",
        "--cooldown=linear:2000:10000:3.08",
        "--momentum=0.9",
        f"--output={record}",
        f"--figure={figure}",
    ]
    plain = [f"--curve={bare}", "--learning_rate=0.001"]
    results, loaded = invoke(asked, plain)
    assert loaded == ["matplotlib"]  # for the figure
    for code, out, error in results:
        assert code == 0, error
        assert "best that ends now" in out or "no number" in out
    out = results[0][1]
    assert "100 losses to step 20000, rate 0.001; 5 averages and 1 trained decays known" in out
    assert [line.split()[0] for line in out.splitlines()[3:7]] == [
        *("linear", "linear", "one_minus_sqrt", "cosine"),
    ]
    assert "begins now" in out
    assert "ends at 16000" in out
    assert "no number" in out  # of the decay over three quarters of the steps
    found = decay_figure.read_forecast(record)
    assert [d["end"] for d in found["decays"]] == [20_000, 24_000, 16_000, 20_000]
    assert [d["flag"] for d in found["decays"]] == ["ok", "extrapolated", "ok", "outside"]
    assert found["momentum"] == 0.9
    first = found["decays"][0]
    assert first["low"] < first["half_low"] < first["loss"] < first["half_high"] < first["high"]
    assert found["averages"][0] == {"length": 4000, "step": 4000, "loss": pytest.approx(3.219, 0.1)}
    assert figure.read_text().startswith("<?xml")
    again = tmp_path / "again.svg"
    decay_figure.draw(found, again)
    assert again.read_bytes() == figure.read_bytes()


HEAD = "step,loss,learning_rate,average_500\n"
BAD_FILES = {
    "nothing": ("", "must have a header with columns step and loss"),
    "no loss": ("step,lose\n1,2\n", "line 1: must have a column 'loss'. Did you mean 'lose'?"),
    "an unknown column": ("step,loss,averge_5\n", "line 1: columns must be step, loss,"),
    "a column twice": ("step,loss,loss\n", "line 1: must have each column once. Received: 'loss'"),
    "a text": (HEAD + "1,2,0.1,\n2,abc,0.1,\n", "line 3, column 'loss': must be a finite number"),
    "no number": (HEAD + "1,nan,0.1,\n", "line 2, column 'loss': must be a finite number"),
    "a missing loss": (HEAD + "1,,0.1,\n", "line 2, column 'loss'"),
    "an average": (HEAD + "1,2,0.1,x\n", "line 2, column 'average_500'"),
    "a fraction": (HEAD + "1.5,2,0.1,\n", "line 2, column 'step': must be a whole number"),
    "unsorted": (
        HEAD + "5,2,0.1,\n\n4,2,0.1,\n",
        "line 4, column 'step': must increase. Received: 4 after 5",
    ),
    "a short row": (HEAD + "1,2\n", "line 2: must have 4 cells. Received: 2"),
}


@pytest.mark.parametrize("text, message", BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_a_curve_names_file_line_and_column(tmp_path, text, message):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        curve_files.read_curve(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_curve_comes_back_with_its_averages(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("average_2,step,loss\n,1,3.0\n2.5,2,2.75\n")
    found = curve_files.read_curve(str(path))
    assert found.steps.tolist() == [1.0, 2.0]
    assert found.losses.tolist() == [3.0, 2.75]
    assert found.averages == [(2, 2, 2.5)]
    assert found.rates is None


def test_mistakes_in_flags_are_one_line_and_write_nothing(tmp_path):
    curve = write_curve(tmp_path / "curve.csv")
    bare = write_curve(tmp_path / "bare.csv", rate=False)
    changed = tmp_path / "changed.csv"
    changed.write_text(
        "step,loss,learning_rate\n"
        + "".join(
            f"{s},{3 - s / 1e5},{1e-3 if s < 1500 else 5e-4}\n" for s in range(200, 3001, 200)
        )
    )
    output = f"--output={tmp_path / 'out.json'}"
    cases = {
        "either --curve=FILE.csv or --workdir=RUN is needed": [],
        "--learning_rate is needed": [f"--curve={bare}"],
        "--learning_rate must be above 0": [f"--curve={curve}", "--learning_rate=-1"],
        "must be constant after a warm-up": [f"--curve={changed}"],
        "Did you mean 'linear'? Received: shape='linaer'": [f"--curve={curve}", "--decay=linaer:5"],
        "--decay must be SHAPE:LENGTH": [f"--curve={curve}", "--decay=linear"],
        "steps must be whole numbers above 0": [f"--curve={curve}", "--decay=linear:1e3"],
        "`length` must be below `end`": [f"--curve={curve}", "--decay=linear:5000:4000"],
        "--cooldown must be SHAPE:LENGTH:END:LOSS": [f"--curve={curve}", "--cooldown=linear:5:9"],
        "LOSS must be a number": [f"--curve={curve}", "--cooldown=linear:500:9000:low"],
        "--figure must end in .svg": [f"--curve={curve}", f"--figure={tmp_path}/a.png"],
        "--level must be above 0": [f"--curve={curve}", "--level=1.5"],
        "`momentum` must be a number of at least 0 and below 1": [
            f"--curve={curve}",
            "--momentum=1",
        ],
        "--split goes with --workdir": [f"--curve={curve}", "--split=test"],
        "--curve: there is no file": ["--curve=nowhere.csv"],
        "--workdir: there is no folder": ["--workdir=nowhere"],
    }
    results, _ = invoke(*([*case, output] for case in cases.values()))
    for expected, (code, _, error) in zip(cases, results, strict=True):
        assert code == 2, error
        assert expected in error
        assert error.count("\n") == 1, error
    assert not (tmp_path / "out.json").exists()
