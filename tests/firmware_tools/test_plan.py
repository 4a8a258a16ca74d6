"""Steps of a build: what is made anew and what is not, and that the cache holds whole files only."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_tools.build.plan import Plan, Step
from firmware_tools.errors import FirmwareError

SHELL = ("sh", "-c")


def step(name: str, script: str = "printf made >{output}", **values: object) -> Step:
    return Step(name, f"makes {name}", ".out", ((*SHELL, script),), **values)  # type: ignore[arg-type]


def run(plan: Plan, cache: Path) -> tuple[dict[str, Path], list[str]]:
    said: list[str] = []
    return plan.run(cache, say=said.append), said


def test_a_step_uses_what_the_steps_before_made(tmp_path: Path) -> None:
    plan = Plan([step("one", "printf 1 >{output}"), step("two", "cat {one} {one} >{output}", after=("one",))])
    outputs, said = run(plan, tmp_path)
    assert outputs["two"].read_text() == "11"
    assert [line.partition(",")[0] for line in said] == ["one: makes one", "two: makes two"]
    assert run(plan, tmp_path) == (outputs, ["one: as before", "two: as before"])


def test_work_in_python_comes_after_the_commands(tmp_path: Path) -> None:
    def work(output: Path, outputs: Mapping[str, Path]) -> None:
        output.write_text(output.read_text() + outputs["one"].read_text())

    outputs, _ = run(Plan([step("one"), step("two", after=("one",), work=work)]), tmp_path)
    assert outputs["two"].read_text() == "mademade"


def test_whatever_decides_on_an_output_changes_its_key_and_those_after_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1")
    one, two = step("one", files={"lock": lock}), step("two", after=("one",))
    before = Plan([one, two]).keys
    for other in (
        replace(one, commands=((*SHELL, "true"),)),
        replace(one, inputs={"x": "1"}),
        replace(one, environment={"x": "1"}),
        replace(one, suffix=".tar"),
        replace(one, files={}),
    ):
        keys = Plan([other, two]).keys
        assert keys["one"] != before["one"]
        assert keys["two"] != before["two"]
    lock.write_text("2")
    assert Plan([one, two]).keys["one"] != before["one"]


def test_where_a_file_lies_does_not_matter(tmp_path: Path) -> None:
    keys, made = set(), set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheel = tmp_path / name / "graftwork.whl"
        wheel.write_text("wheel")
        plan = Plan([step("wheels", "cp {wheel} {output}", files={"wheel": wheel})])
        keys.add(plan.keys["wheels"])
        made.add(run(plan, tmp_path / "cache")[0]["wheels"].read_text())
        assert f"{{wheel}} is {wheel}" in plan.describe()
    assert len(keys) == 1
    assert made == {"wheel"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("printf half >{output}; echo disk full >&2; exit 3", "sh ended with status 3:\ndisk full"),
        ("true", "ended without its output"),
    ],
)
def test_a_step_that_fails_leaves_nothing(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(FirmwareError, match=said):
        run(Plan([step("one", script)]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_work_that_fails_or_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def work(output: Path, _outputs: Mapping[str, Path]) -> None:
        output.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Plan([step("one", work=work)]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_steps_before_a_failure_are_kept(tmp_path: Path) -> None:
    with pytest.raises(FirmwareError, match="step two"):
        run(Plan([step("one"), step("two", "false")]), tmp_path)
    assert run(Plan([step("one")]), tmp_path)[1] == ["one: as before"]


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    plan = Plan([Step("one", "", ".out", (("no-such-program", "{output}"),))])
    with pytest.raises(
        FirmwareError, match="no-such-program is not installed; see: graftwork-firmware doctor"
    ):
        run(plan, tmp_path)


def test_the_plan_shows_every_command_and_runs_none() -> None:
    text = Plan([step("one", "rm -rf {scratch}")]).describe()
    assert "# one: makes one" in text
    assert "sh '-c' 'rm -rf {scratch}'" in text
