import csv

from matplotlib.figure import Figure

from sbiflow.training.progress import TrainingLog, progress_bar

LOG = TrainingLog([50, 100, 150], [3.0, 2.0, 1.5], [0.01, 0.02, 0.0], [100, 150], [2.5, 2.75], 1.25)


def test_the_log_as_a_file_and_a_figure(tmp_path):
    LOG.save(tmp_path)
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    assert [row["validation_loss_nats"] for row in rows] == ["", "2.500000", "2.750000"]
    assert float(rows[1]["learning_rate"]) == 0.02 and float(rows[2]["loss_nats"]) == 1.5
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(LOG.figure(), Figure)


def test_the_best_is_the_lowest_validation_loss():
    assert LOG.best == 2.5
    assert TrainingLog().best == float("inf")


def test_state_is_all_there_is():
    assert TrainingLog(**LOG.state()) == LOG


def test_the_bar_shows_loss_validation_speed_and_time_left_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar(20_000, 19_000, True) as show:
        show(19_999, -12.3456, -12.1234)
    shown = capsys.readouterr().err.strip()
    assert len(shown) <= 80 and "…" not in shown
    assert "19999/20000 loss -12.346, validation -12.123, " in shown
    assert shown.endswith("left") and "/s " in shown and ":" in shown


def test_no_bar(capsys):
    with progress_bar(10, 0, False) as show:
        show(5, 1.25, 1.5)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
