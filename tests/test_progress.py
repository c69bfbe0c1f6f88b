import pytest

from inference import NUTS, SVI, AutoVI, fit
from inference.progress import bar, showing
from tests.zoo import SCHOOLS, schools


@pytest.mark.parametrize(
    "engine",
    [
        NUTS(num_warmup=20, num_samples=20, num_chains=1),
        NUTS(num_warmup=20, num_samples=20, num_chains=1, backend="pyro"),
        SVI(num_steps=20),
        AutoVI(num_starts=1),
    ],
    ids=["nuts", "pyro", "svi", "auto"],
)
def test_fits_are_silent_off_a_terminal(engine, capfd):
    fit(schools, SCHOOLS, engine)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("wanted", "shown"), [(True, True), (False, False), (None, False)])
def test_bars_follow_the_switch(wanted, shown, monkeypatch, capsys):
    monkeypatch.setattr("inference.progress.DELAY", 0.0)
    with showing(wanted) as decided:
        assert decided is shown
        assert list(bar(range(3), desc="counting")) == [0, 1, 2]
    assert ("counting" in capsys.readouterr().err) is shown


def test_a_bar_on_a_terminal_by_default(monkeypatch, capsys):
    monkeypatch.setattr("inference.progress.DELAY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(bar(range(3), desc="counting"))
    assert "counting" in capsys.readouterr().err
