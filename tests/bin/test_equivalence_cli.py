"""The command line of the equivalence: numbers, files, errors, and its speed."""

import csv
import shlex
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers import run_without_keras

from tf_lrtraj import kernels, rates, theory
from tf_lrtraj.bin import tables


def invoke(*commands):
    return run_without_keras("equivalence", *commands)


def read(path):
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {
        name: np.array([float(row[name]) if row[name] else np.nan for row in rows])
        for name in rows[0]
    }


def test_results_and_files(tmp_path):
    log = tmp_path / "log.csv"
    base = np.linspace(0.4, 0.1, 30)
    lines = [f"{t},{rate!r},x" for t, rate in enumerate(base.tolist())]
    log.write_text("step,rate,note\n" + "\n".join(lines) + "\n")
    ema, curved, spectrum, weights = (tmp_path / f"{name}.csv" for name in "abcd")
    kernel = kernels.Exponential(0.9)
    commands = [
        ["--kernel=Exponential(decay=0.9)", f"--base={log}:rate", f"--csv={ema}"],
        [
            "--kernel=Exponential(0.9, start=5)",
            "--base=0.2",
            "--num_steps=40",
            "--curvature=1.5",
            "--momentum=0.5",
            "--convention=pytorch",
            f"--csv={curved}",
        ],
        [
            "--kernel=Uniform(start=20)",
            "--base=0.5",
            "--num_steps=60",
            "--spectrum=0.01:1:7",
            "--fit=monotone",
            "--noise=0.3",
            f"--csv={spectrum}",
        ],
        [
            "--emulate=one_minus_sqrt",
            "--decay_steps=20",
            "--base=0.1",
            "--num_steps=100",
            "--every=5",
            f"--csv={weights}",
        ],
    ]
    results, loaded = invoke(*commands)
    for code, _, error in results:
        assert (code, error) == (0, "")
    assert loaded == []

    found = read(ema)
    np.testing.assert_allclose(found["base"][:-1], base)
    np.testing.assert_allclose(
        found["schedule"][:-1], theory.schedule_from_weights(kernel, base), rtol=1e-12
    )
    np.testing.assert_allclose(found["weight"], kernel.weights(30), rtol=1e-12)
    assert np.isnan(found["schedule"][-1])
    assert "mean age" in results[0][1]

    expected = theory.schedule_from_weights(
        kernels.Exponential(0.9, start=5).weights(40), 0.2, 1.5, 0.5, convention="pytorch"
    )
    np.testing.assert_allclose(read(curved)["schedule"][:-1], expected, rtol=1e-12)
    assert "momentum 0.5 (pytorch convention)" in results[1][1]

    found, table = read(spectrum), read(tmp_path / "c_spectrum.csv")
    np.testing.assert_allclose(table["curvature"], np.geomspace(0.01, 1, 7))
    average = kernels.Uniform(start=20).weights(60)
    mismatch = theory.schedule_mismatch(found["best"][:-1], average, 0.5, table["curvature"])
    np.testing.assert_allclose(table["loss, best"], mismatch.schedule_losses(1.0, 0.3), rtol=1e-9)
    np.testing.assert_allclose(table["loss, average"], mismatch.average_losses(1.0, 0.3), rtol=1e-9)
    off = abs(np.log(table["loss, best"].sum() / table["loss, average"].sum()))
    assert f"off by {off:.3g}"[:9] in results[2][1]

    found = read(weights)
    schedule = rates.as_array(rates.OneMinusSqrt(0.1, hold=80, steps=20), 100)
    steps, folded = theory.fold_onto_snapshots(theory.weights_from_schedule(schedule, 0.1), 5)
    np.testing.assert_array_equal(found["snapshot"], steps)
    np.testing.assert_allclose(found["weight"], folded, atol=1e-15)
    assert "(16 snapshots before 80 have weight 0)" in results[3][1]


def test_figures_and_help(tmp_path):
    picture, drawing = tmp_path / "a.png", tmp_path / "b.svg"
    results, _ = invoke(
        ["--kernel=TwoPoint(gap=5)", "--num_steps=20", f"--figure={picture}"],
        ["--emulate=cosine", "--num_steps=20", f"--figure={drawing}"],
        ["--help"],
    )
    assert [result[0] for result in results[:2]] == [0, 0]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in drawing.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.svg"]
    shown = results[2][1] + results[2][2]
    assert "lrtraj-equivalence --emulate=cosine" in shown
    assert "--curvature" in shown


def test_mistakes_are_one_line_and_exit_code_2(tmp_path):
    unsorted = tmp_path / "unsorted.csv"
    unsorted.write_text("step,rate\n0,0.1\n2,0.1\n1,0.1\n")
    hole = tmp_path / "hole.csv"
    hole.write_text("step,rate\n0,0.1\n1,nan\n")
    good = tmp_path / "good.csv"
    good.write_text("step,rate,loss\n0,0.1,1\n1,0.1,1\n")
    late = tmp_path / "late.csv"
    late.write_text("step,rate\n3,0.1\n4,0.1\n")
    below = tmp_path / "below.csv"
    below.write_text("rate\n0.1\n-0.1\n")
    kernel = "'--kernel=TwoPoint(gap=1)'"
    short = f"{kernel} --num_steps=9"
    cases = {
        "column 'step' must increase. Received: 1 after 2": f"{kernel} --base={unsorted}",
        "'rate' must hold finite numbers. Received: 'nan' in data row 2": f"{kernel} --base={hole}",
        "choose one with": f"{kernel} --base={good}",
        "no column 'rat'. It has: ['step', 'rate', 'loss']. Did you mean 'rate'?": (
            f"{kernel} --base={good}:rat"
        ),
        "must begin at 0. Received: 3": f"{kernel} --base={late}",
        "rates must be at least 0. Received: -0.1 in data row 2": f"{kernel} --base={below}",
        "holds rates for 2 updates. Received: --num_steps=9": f"{short} --base={good}:rate",
        "missing.csv: No such file": f"{kernel} --base=missing.csv",
        "reaches beyond the run of 10 updates": "'--kernel=TwoPoint(gap=50)' --num_steps=10",
        "Uniform(start=10, every=1) reaches beyond": "'--kernel=Uniform(10)' --num_steps=10",
        "stability limit": f"{kernel} --num_steps=10 --curvature=30",
        "`curvature` must be": f"{kernel} --num_steps=10 --curvature=-1",
        "`momentum` must": f"{kernel} --num_steps=10 --momentum=1.5",
        "Did you mean 'Exponential'? Received: kernel='Exponentil'": (
            "'--kernel=Exponentil(0.9)' --num_steps=10"
        ),
        "`decay` must be a number": "'--kernel=Exponential(1.5)' --num_steps=10",
        "too many arguments: TwoPoint takes ['gap']": "'--kernel=TwoPoint(1, 2)' --num_steps=9",
        "must be a name with plain arguments": "\"--kernel=TwoPoint(gap=open('x'))\"",
        "`weights` must sum to 1": "'--kernel=Custom([0.5, 0.4])' --num_steps=9",
        "No schedule equals this average": (
            "'--kernel=Custom([1, 1, -1])' --num_steps=2 --base=0.5 --curvature=2"
        ),
        "--num_steps is needed": f"{kernel} --base=0.1",
        "Did you mean 'cosine'?": f"{short} --base=cosin",
        "takes ['start', 'steps', 'end']": f"{short} '--base=Linear(start=1.0, stops=3)'",
        "`rate` must be a number of at least 0": f"{short} --base=-1",
        "`rate` must be a number": f"{short} --base=nan",
        "`--spectrum` must be LOW:HIGH:COUNT": f"{short} --spectrum=1:2",
        "fits schedules without momentum": f"{short} --spectrum=0.1:1:3 --momentum=0.9",
        "either --kernel": "--num_steps=9",
        "`every` must be at most": "--emulate=linear --num_steps=9 --every=20",
        "--decay_steps: `updates` must be an integer": (
            "--emulate=linear --num_steps=9 --decay_steps=20"
        ),
        "that ends in .png": f"{short} --figure=a.txt",
        "--csv: there is no folder '/nowhere'": f"{short} --csv=/nowhere/a.csv",
        "unexpected arguments": f"{short} extra",
        "num_steps": f"{kernel} --num_steps=0",
        "Unknown command line flag 'kernal'": "--kernal=x",
    }
    results, loaded = invoke(*map(shlex.split, cases.values()))
    assert loaded == []
    for message, (code, _, error) in zip(cases, results, strict=True):
        assert message in error
        assert code == 2, message
        assert error.count("\n") <= 2, error
        assert "Traceback" not in error
        assert "np.float64" not in error


def test_ten_thousand_updates_without_tensorflow():
    code = textwrap.dedent("""
        import runpy, sys
        sys.argv = ["equivalence", "--kernel=Exponential(decay=0.999)", "--num_steps=10000",
                    "--curvature=0.5", "--momentum=0.9"]
        try:
            runpy.run_module("tf_lrtraj.bin.equivalence", run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        assert "tensorflow" not in sys.modules
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "10000" in done.stdout


def test_rates_of_sparse_files_are_interpolated_and_said_to_be(tmp_path, capsys):
    sparse = tmp_path / "sparse.csv"
    sparse.write_text("step,rate\n0,0.4\n4,0.2\n")
    found = tables.parse_rates(str(sparse), None, peak=0.1, decay=None)
    np.testing.assert_allclose(found, [0.4, 0.35, 0.3, 0.25, 0.2])
    assert "interpolated" in capsys.readouterr().out
    bare = tmp_path / "bare.csv"
    bare.write_text("0.4\n0.2\n")
    np.testing.assert_allclose(tables.parse_rates(str(bare), None, 0.1, None), [0.4, 0.2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", np.full(4, 0.3)),
        ("constant", np.full(4, 0.8)),
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("Piecewise(boundaries=[2], values=[0.5, 0.25])", [0.5, 0.5, 0.25, 0.25]),
        ("Linear(0.4, 4)", [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_rates_by_name_and_formula(text, expected):
    np.testing.assert_allclose(tables.parse_rates(text, 4, peak=0.8, decay=4), expected)


def test_spectra_from_files(tmp_path):
    spectrum = tmp_path / "spectrum.csv"
    spectrum.write_text("index,eigenvalue\n0,0.5\n1,0.25\n")
    np.testing.assert_array_equal(tables.parse_spectrum(f"{spectrum}:eigenvalue"), [0.5, 0.25])


def test_a_schedule_falls_from_the_run_s_rate_where_it_begins():
    base = rates.as_array(rates.Cosine(0.5, 1000), 1000)
    schedule = tables.decayed_rates("linear", base, 200)
    np.testing.assert_array_equal(schedule[:801], base[:801])
    np.testing.assert_allclose(schedule[800:], base[800] * np.arange(200, 0, -1) / 200)
    with pytest.raises(ValueError, match=r"at most 1000\. Received: updates=1001"):
        tables.decayed_rates("linear", base, 1001)
    with pytest.raises(ValueError, match=r"Received: shape='0\.05'"):
        tables.decayed_rates("0.05", base, 200)


def test_a_file_that_is_no_csv_is_named(tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text('"' + 140_000 * "x")
    with pytest.raises(ValueError, match=r"rates\.csv is not a CSV file: field larger"):
        tables.parse_rates(str(path), 10, 0.1, None)
