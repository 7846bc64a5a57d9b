"""`zero123 views` as people and scripts call it, with a model that draws in milliseconds."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from conftest import Photographer, Program, photo_bytes, plain_bytes
from PIL import Image
from safetensors.torch import save_file

from zero123cli.artifacts import Ask
from zero123cli.cache import entries
from zero123cli.cli.views import label
from zero123cli.report import FRAME_TIME, MARGIN, best_columns

Inside = Callable[..., int]
QUICK = ("--model", "small.safetensors", "--steps", "3", "--sampler", "ddim", "--device", "cpu", "--dtype", "float32")
SIDE = small.SIZE


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_compact(tmp_path_factory.mktemp("weights") / "small.safetensors", small.make_model())


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, weights: Path, photo: Photographer) -> Path:
    """The folder of each test: a photo and a model."""
    shutil.copyfile(weights, tmp_path / weights.name)
    photo()
    return tmp_path


@pytest.fixture
def call(inside: Inside, capfd: pytest.CaptureFixture[str], cache_root: Path) -> Callable[..., tuple[str, str]]:
    """`zero123 views` in this process: stdout and stderr, held against what is true of every run."""

    def run(*arguments: str, code: int = 0, quick: Sequence[str] = QUICK) -> tuple[str, str]:
        capfd.readouterr()
        found = inside("views", *arguments, *quick)
        out, err = capfd.readouterr()
        told = f"exit {found}\n{out}\n{err}"
        assert found == code, told
        assert "Traceback" not in err and "\r" not in out + err, told
        for line in out.splitlines():
            if "--json" in arguments:
                assert {"status", "code"} <= json.loads(line).keys(), told
            else:
                assert Path(line).is_file(), told
        assert not list(Path.cwd().rglob(".zero123-*.tmp")), told
        assert not [entry for entry in entries(cache_root, check=True) if entry.damage], told
        return out, err

    return run


Call = Callable[..., tuple[str, str]]


def refused(call: Call, *arguments: str, code: int, **how: Any) -> str:
    """The one line that a call gets that cannot be right, before any work."""
    before = sorted(os.listdir())
    out, err = call(*arguments, code=code, **how)
    assert out == "" and sorted(os.listdir()) == before
    assert err.count("\n") == 1 and err.startswith(f"zero123: error[{code}]: "), err
    return err


def size_of(name: str | Path) -> tuple[int, int]:
    with Image.open(name) as image:
        return image.size


def pixels_of(name: str | Path) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def pngs() -> list[str]:
    return sorted(path.name for path in Path().glob("*_az*.png"))


# Outputs --------------------------------------------------------------------------------------------------------------


def test_a_single_view_has_its_angles_in_its_name(call: Call) -> None:
    out, err = call("disc.png", "--azimuth", "90")
    assert out == "disc_az090_el+00_s0.png\n"
    assert size_of("disc_az090_el+00_s0.png") == (SIDE, SIDE)
    assert "small.safetensors" in err and "CPU" in err and "float32" in err, "stderr names the model and where it runs"
    assert "views: disc.png: 1 view" in err


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--azimuth 5 --elevation 20", "az005_el+20_s0"),
        ("--azimuth 0 --elevation -30", "az000_el-30_s0"),
        ("--azimuth -90", "az270_el+00_s0"),
        ("--azimuth 359", "az359_el+00_s0"),
        ("--azimuth 360", "az000_el+00_s0"),
        ("--azimuth 22.5", "az22.500_el+00_s0"),
        ("--azimuth 90 --distance 0.25", "az090_el+00_r+0.25_s0"),
        ("--azimuth 90 --distance -0.5 --elevation 5", "az090_el+05_r-0.50_s0"),
    ],
)
def test_names_of_views(call: Call, flags: str, name: str) -> None:
    assert call("disc.png", *flags.split())[0] == f"disc_{name}.png\n"


@pytest.mark.parametrize("azimuth", [0.0, -0.0, 360.0, -360.0, 1e-13, -1e-13, 359.9999, -90.00001, 720.0])
def test_azimuths_in_names_lie_below_a_full_turn(azimuth: float) -> None:
    name = label(Ask(azimuth, 0, 0, 0, 0, "ddim", 1, 1, 0))
    assert re.fullmatch(r"az(000|270)_el\+00_s0", name)


def test_minus_ninety_and_two_hundred_and_seventy_are_one_view(call: Call) -> None:
    call("disc.png", "--azimuth", "270")
    before = Path("disc_az270_el+00_s0.png").read_bytes()
    out, err = call("disc.png", "--azimuth=-90")  # as good as there: the same picture under the same name
    assert out == "disc_az270_el+00_s0.png\n"
    assert Path("disc_az270_el+00_s0.png").read_bytes() == before
    assert "kept from before" in err


def test_one_file_of_a_chosen_name(call: Call) -> None:
    assert call("disc.png", "--azimuth", "90", "-o", "file.png")[0] == "file.png\n"
    call("disc.png", "--azimuth", "90")
    assert np.array_equal(pixels_of("file.png"), pixels_of("disc_az090_el+00_s0.png"))


@pytest.mark.parametrize("flags", ["--count 4", "--azimuth 0 --azimuth 90 --azimuth 180 --azimuth 270"])
def test_several_views_are_files_of_their_own(call: Call, flags: str) -> None:
    out, _ = call("disc.png", *flags.split())
    assert out.splitlines() == [f"disc_az{azimuth:03d}_el+00_s0.png" for azimuth in (0, 90, 180, 270)]
    pages = [pixels_of(line) for line in out.splitlines()]
    assert all(np.abs(pages[a].astype(int) - pages[b]).max() > 8 for a in range(4) for b in range(a))


def test_a_ring_may_begin_elsewhere(call: Call) -> None:
    out, _ = call("disc.png", "--azimuth", "30", "--count", "3", "--elevation", "10")
    assert out.splitlines() == [f"disc_az{azimuth:03d}_el+10_s0.png" for azimuth in (30, 150, 270)]


def test_samples_of_a_view_are_all_different(call: Call) -> None:
    out, _ = call("disc.png", "--azimuth", "90", "--samples", "3")
    assert out.splitlines() == [f"disc_az090_el+00_s{k}.png" for k in range(3)]
    pages = [pixels_of(line).astype(int) for line in out.splitlines()]
    assert all(np.abs(pages[a] - pages[b]).max() > 8 for a in range(3) for b in range(a))
    first = Path("disc_az090_el+00_s0.png").read_bytes()
    call("disc.png", "--azimuth", "90", "-o", "again.png", "--no-cache")
    assert Path("again.png").read_bytes() == first, "how many are drawn does not change the first"


@pytest.mark.parametrize(("flags", "columns", "rows"), [("--count 8", 0, 0), ("--count 3 --samples 2", 2, 3)])
def test_several_views_in_one_png_are_a_contact_sheet(call: Call, flags: str, columns: int, rows: int) -> None:
    assert call("disc.png", *flags.split(), "-o", "sheet.png", "--set", "views.batch=4")[0] == "sheet.png\n"
    columns = columns or best_columns(8)
    width, height = size_of("sheet.png")
    assert width == columns * (SIDE + MARGIN) + MARGIN
    assert height > (rows or 8 // columns) * (SIDE + 2 * MARGIN)
    call("disc.png", "--count", flags.split()[1], "--no-cache")
    sheet, first = pixels_of("sheet.png"), pixels_of("disc_az000_el+00_s0.png")
    difference = sheet[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE].astype(int) - first
    assert np.abs(difference).max() <= 1, "the views themselves, unscaled, whatever the batch"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
def test_a_turntable(call: Call, suffix: str) -> None:
    name = f"turn{suffix}"
    assert call("disc.png", "--count", "6", "-o", name)[0] == f"{name}\n"
    with Image.open(name) as image:
        assert (image.format, image.size) == (suffix[1:].upper(), (SIDE, SIDE))
        assert getattr(image, "n_frames", 1) == 6 and image.info["loop"] == 0
        image.load()
        assert image.info["duration"] == FRAME_TIME


def test_a_film_needs_ffmpeg(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    _, err = call("disc.png", "--count", "2", "-o", "turn.mp4", code=69)
    assert "ffmpeg" in err and ".gif" in err and not Path("turn.mp4").exists()
    out, _ = call("disc.png", "--count", "2", "-o", "turn.gif", "--json")
    assert json.loads(out)["hits"] == 0, "that was said before any work"


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a shell script")
def test_a_film_is_what_ffmpeg_makes(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text("#!/bin/sh\nwc -c | tr -d ' \\n'\n")
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    call("disc.png", "--count", "3", "-o", "turn.mp4")
    assert Path("turn.mp4").read_text() == str(3 * SIDE * SIDE * 3)


@pytest.mark.parametrize("out", ["out/", "out/{stem}.png"])
def test_several_photos_go_into_a_folder(call: Call, photo: Photographer, out: str) -> None:
    photo("other.png", 1)
    lines = call("disc.png", "other.png", "--azimuth", "90", "-o", out)[0].splitlines()
    end = "" if "{" in out else "_az090_el+00_s0"
    assert lines == [f"out/disc{end}.png", f"out/other{end}.png"]
    assert not np.array_equal(pixels_of(lines[0]), pixels_of(lines[1]))


def test_a_photo_from_stdin(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo_bytes())))
    assert call("-", "--azimuth", "90")[0] == "stdin_az090_el+00_s0.png\n"
    call("disc.png", "--azimuth", "90")
    assert np.array_equal(pixels_of("stdin_az090_el+00_s0.png"), pixels_of("disc_az090_el+00_s0.png"))


# Poses from a table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["90,0\n-90,20\n0,0,0.25\n", "azimuth,elevation,distance\n# of a ring\n90,0,0\n270,20,0\n\n 0 , 0 , 0.25 \n"],
    ids=["bare", "with names and remarks"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_poses_from_a_table(call: Call, text: str, end: str) -> None:
    Path("poses.csv").write_bytes(b"\xef\xbb\xbf" * (end == "\r\n") + text.replace("\n", end).encode())
    out, _ = call("disc.png", "--poses", "poses.csv")
    assert out.splitlines() == [
        "disc_az090_el+00_s0.png",
        "disc_az270_el+20_s0.png",
        "disc_az000_el+00_r+0.25_s0.png",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 poses"),
        ("azimuth,elevation\n", "0 poses"),
        ("90\n", "line 1"),
        ("90,0\n1,2,3,4\n", "line 2"),
        ("90,up\n", "line 1"),
        ("nan,0\n", "line 1"),
        ("0,inf\n", "line 1"),
        ("0,0,1.5\n", "line 1"),
        ("0,181\n", "line 1"),
        ("0,0\n0,91\n", "over the top"),
        ("\x00", ""),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(call: Call, text: str, said: str) -> None:
    Path("poses.csv").write_text(text)
    assert said in refused(call, "disc.png", "--poses", "poses.csv", code=2)


def test_a_table_that_is_none(call: Call) -> None:
    assert "nowhere.csv" in refused(call, "disc.png", "--poses", "nowhere.csv", code=66)
    Path("binary.csv").write_bytes(bytes(range(256)))
    assert "binary.csv" in refused(call, "disc.png", "--poses", "binary.csv", code=2)
    Path("folder.csv").mkdir()
    refused(call, "disc.png", "--poses", "folder.csv", code=66)


# What is kept ---------------------------------------------------------------------------------------------------------


def test_further_views_are_drawn_and_the_others_kept(call: Call) -> None:
    call("disc.png", "--count", "4")
    out, _ = call("disc.png", "--count", "8", "--json")
    facts = json.loads(out)
    assert [view["hit"] for view in facts["views"]] == [True, False] * 4 and not facts["hit"]
    assert len(pngs()) == 8


def test_another_seed_or_setting_is_another_picture(call: Call) -> None:
    pages = []
    for k, flags in enumerate(
        (["--seed", "1"], ["--guidance", "1.5"], ["--eta", "0"], ["--photo-elevation", "20"], [])
    ):
        call("disc.png", "--azimuth", "90", "-o", f"{k}.png", *flags)
        pages.append(pixels_of(f"{k}.png").astype(int))
    assert all(np.abs(pages[a] - pages[b]).max() > 4 for a in range(5) for b in range(a))


def test_an_existing_file_is_replaced_only_by_force(call: Call) -> None:
    name = Path("disc_az090_el+00_s0.png")
    name.write_bytes(b"precious")
    for flags in ([], ["--samples", "2"]):
        _, err = call("disc.png", "--azimuth", "90", *flags, code=73)
        assert "--force" in err and name.read_bytes() == b"precious" and pngs() == [name.name]
    call("disc.png", "--azimuth", "90", "--force")
    assert size_of(name) == (SIDE, SIDE)
    call("disc.png", "--azimuth", "90")  # there already, byte for byte
    name.write_bytes(b"changed")
    call("disc.png", "--azimuth", "90", code=73)
    assert name.read_bytes() == b"changed"


def test_json_tells_what_was_made(call: Call) -> None:
    out, _ = call("disc.png", "--azimuth", "90", "--azimuth", "180", "--elevation", "10", "--samples", "2", "--json")
    facts = json.loads(out)
    assert (facts["status"], facts["code"], facts["input"]) == ("ok", 0, "disc.png")
    assert facts["outputs"] == [f"disc_az{a:03d}_el+10_s{s}.png" for a in (90, 180) for s in (0, 1)]
    assert [(view["azimuth"], view["elevation"], view["sample"]) for view in facts["views"]] == [
        (a, 10, s) for a in (90, 180) for s in (0, 1)
    ]
    assert not any(view["hit"] for view in facts["views"]) and len({view["key"] for view in facts["views"]}) == 4
    assert (facts["model"], facts["dtype"]) == ("small.safetensors", "float32") and "CPU" in facts["device"]
    assert facts["settings"]["views.steps"] == [3, "flag --steps"] and facts["warnings"] == []
    assert re.fullmatch("[0-9a-f]{64}", facts["photo_sha256"]) and facts["seconds"] > 0
    assert {"version", "seed", "licence", "photo_elevation"} <= facts.keys()
    assert [*facts["stages"]] == ["cutout", "views"] and facts["stages"]["views"]["process_peak_bytes"] > 0


# Wrong calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "--azimuth"),
        ("--azimuth 90 --poses poses.csv", "one way"),
        ("--count 4 --poses poses.csv", "one way"),
        ("--poses poses.csv --elevation 10", "has its own"),
        ("--poses poses.csv --distance 0.5", "has its own"),
        ("--azimuth 90 --azimuth 180 --count 4", "one way"),
        ("--count 0", "--count"),
        ("--count 361", "--count"),
        ("--azimuth 90 --samples 0", "--samples"),
        ("--azimuth ninety", "--azimuth"),
        ("--azimuth nan", "--azimuth"),
        ("--azimuth inf", "--azimuth"),
        ("--azimuth 90 --elevation nan", "--elevation"),
        ("--azimuth 90 --elevation inf", "--elevation"),
        ("--azimuth 90 --elevation 91", "over the top"),
        ("--azimuth 90 --elevation -45 --photo-elevation -50", "over the top"),
        ("--azimuth 90 --distance 1.5", "--distance"),
        ("--azimuth 90 --distance nan", "--distance"),
        ("--azimuth 90 --photo-elevation 100", "--photo-elevation"),
        ("--azimuth 90 -o view.jpg", ".jpg"),
        ("--count 2 -o disc.png", "replace an input"),
        ("--azimuth 90 --sampler euler", "--sampler"),
        ("--azimuth 90 --steps 0", "--steps"),
        ("--azimuth 90 --steps 1000", "--steps"),
        ("--azimuth 90 --steps 1 --sampler ddim-original", "steps"),
        ("--azimuth 90 --guidance -1", "--guidance"),
        ("--azimuth 90 --eta 2", "--eta"),
        ("--azimuth 90 --batch 0", "--batch"),
        ("--azimuth 90 --seed -1", "--seed"),
        ("--azimuth 90 --pose-kind both", "--pose-kind"),
        ("--azimuth 90 --dtype int8", "--dtype"),
        ("--azimuth 90 --device banana", "--device"),
        ("--azimuth 90 --device cuda:x", "--device"),
    ],
)
def test_a_wrong_call_is_refused_before_any_work(call: Call, flags: str, said: str) -> None:
    Path("poses.csv").write_text("90,0\n")
    quick = [part for k in range(0, len(QUICK), 2) for part in QUICK[k : k + 2] if QUICK[k] not in flags]
    assert said in refused(call, "disc.png", *flags.split(), code=2, quick=quick)


def test_an_unknown_sampler_is_met_with_the_known_ones(call: Call) -> None:
    quick = [part for part in QUICK if part not in ("--sampler", "ddim")]
    said = refused(call, "disc.png", "--azimuth", "90", "--sampler", "ddim-orginal", code=2, quick=quick)
    assert 'did you mean "ddim-original"?' in said


def test_a_stable_model_takes_no_distance(call: Call) -> None:
    model = small.make_model()
    small.write_compact(Path("small.safetensors"), model, pose_kind="stable")
    _, err = call("disc.png", "--azimuth", "90", "--distance", "0.2", code=2)
    assert "--distance" in err and not pngs()
    call("disc.png", "--azimuth", "90")


def test_a_gpu_that_is_not_there(call: Call) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    quick = [part for part in QUICK if part not in ("--device", "cpu")]
    for device in ("cuda", "cuda:7"):
        said = refused(call, "disc.png", "--azimuth", "90", "--device", device, code=69, quick=quick)
        assert f"--device {device}" in said


# Models that cannot be used -------------------------------------------------------------------------------------------


def with_model(call: Call, model: str | Path, code: int) -> str:
    out, err = call("disc.png", "--azimuth", "90", "--model", str(model), "--device", "cpu", code=code, quick=())
    assert out == "" and not pngs()
    assert f"error[{code}]" in err
    return err


def test_an_empty_name_is_no_model(call: Call) -> None:
    said = refused(call, "disc.png", "--azimuth", "90", "--model", "", code=2, quick=())
    assert "--model" in said and "zero123 models list" in said


def test_the_embedded_model_answers_when_none_is_named(call: Call) -> None:
    out, err = call("disc.png", "--azimuth", "90", "-o", "side.png", "--device", "cpu", quick=())
    assert out.split() == ["side.png"] and "pocket on " in err
    with Image.open("side.png") as picture:
        assert picture.size == (64, 64)


def test_a_view_that_is_asked_for_twice_is_drawn_once_into_a_folder(call: Call) -> None:
    twice = ("disc.png", "--azimuth", "90", "--azimuth", "450", "--device", "cpu")
    assert len(call(*twice, "-o", "views/", quick=())[0].split()) == 1
    assert call(*twice, "-o", "there-and-back.gif", quick=())[0].split() == ["there-and-back.gif"]
    with Image.open("there-and-back.gif") as animation:
        assert getattr(animation, "n_frames", 1) <= 2


def test_a_model_that_is_not_there(call: Call) -> None:
    assert "nowhere.ckpt" in with_model(call, "nowhere.ckpt", 66)
    assert "folder/model" in with_model(call, "folder/model", 66)


@pytest.mark.parametrize(("name", "near"), [("zero123-xll", "zero123-xl"), ("stable-zero12", "stable-zero123")])
def test_an_unknown_model_is_met_with_the_nearest(call: Call, name: str, near: str) -> None:
    said = with_model(call, name, 2)
    assert re.search(rf"{near}\b", said) and name in said


def test_a_known_model_that_is_not_installed(call: Call) -> None:
    assert "zero123 models pull stable-zero123" in with_model(call, "stable-zero123", 69)


def write_wrong(kind: str) -> Path:
    path = Path(f"{kind}.safetensors")
    if kind == "text":
        path.write_text("not weights at all")
    elif kind == "photo":
        path.write_bytes(photo_bytes())
    elif kind == "language":
        save_file({"wte.weight": torch.ones(4, 4)}, path)
    elif kind == "folder":
        path.mkdir()
    else:
        state = small.publish(small.make_model())
        first = "model.diffusion_model.input_blocks.0.0.weight"
        state = {name: tensor for name, tensor in state.items() if not name.startswith("cc_projection")}
        small.write_ldm(path, state | {first: torch.ones(32, {"sd": 4, "inpainting": 9}[kind], 3, 3)})
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "text"),
        ("photo", "not weights"),
        ("language", "not a Zero123 model"),
        ("sd", "plain Stable Diffusion"),
        ("inpainting", "inpainting"),
        ("folder", "not a Zero123 pipeline"),
    ],
)
def test_a_file_that_is_no_zero123_model(call: Call, kind: str, said: str) -> None:
    path = write_wrong(kind)
    err = with_model(call, path, 65)
    assert said in err and path.name in err


def test_an_unknown_pose_kind_is_asked_for(call: Call) -> None:
    small.write_ldm(Path("trained.ckpt"), small.publish(small.make_model()))
    assert "--pose-kind" in with_model(call, "trained.ckpt", 2)


def test_weights_in_a_diffusers_folder(call: Call) -> None:
    four = {"block_out_channels": (32,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4}
    vae = small.VAE | four | {"up_block_types": ("UpDecoderBlock2D",) * 4}
    small.write_folder(Path("pipeline"), small.make_model(replace(small.SMALL, vae=vae)))
    quick = [part if part != "small.safetensors" else "pipeline" for part in QUICK]
    call("disc.png", "--azimuth", "90", "--pose-kind", "stable", quick=quick)
    assert size_of("disc_az090_el+00_s0.png") == (256, 256), "that of all published models"


# Several photos -------------------------------------------------------------------------------------------------------


def test_a_bad_photo_does_not_stop_the_good_ones(call: Call, photo: Photographer) -> None:
    photo("bad.png", data=b"no picture")
    photo("empty.png", data=plain_bytes())
    photo("other.png", 1)
    out, err = call("disc.png", "bad.png", "empty.png", "nowhere.png", "other.png", "--azimuth", "90", code=66)
    assert out.splitlines() == ["disc_az090_el+00_s0.png", "other_az090_el+00_s0.png"]
    assert "2 of 5 done, 3 failed" in err
    out, _ = call("bad.png", "other.png", "--azimuth", "90", "--json", code=65)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["input"], row["status"], row["code"]) for row in rows] == [
        ("bad.png", "error", 65),
        ("other.png", "ok", 0),
    ]


def test_photos_that_would_write_one_file_are_refused(call: Call, photo: Photographer) -> None:
    photo("sub/disc.png", 1)
    assert "both write" in refused(call, "disc.png", "sub/disc.png", "--azimuth", "90", code=2)
    assert "for 2 inputs" in refused(call, "disc.png", "sub/disc.png", "--count", "4", "-o", "turn.gif", code=2)


def test_an_output_in_a_folder_that_is_not_there(call: Call) -> None:
    _, err = call("disc.png", "--azimuth", "90", "-o", "nowhere/view.png", code=73)
    assert "mkdir" in err


# As a process ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="signals are others on Windows")
@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was_and_a_third_is_all_hits_without_torch(
    zero123: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = """
        import os, signal
        import zero123cli.pipeline as pipeline
        sampled = pipeline.sampled
        def stopped(*given):
            for done, view in enumerate(sampled(*given), 1):
                if done == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield view
        pipeline.sampled = stopped
    """
    arguments = ("views", "disc.png", "--count", "4", *QUICK, "--json")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process
    zero123.wrapped(stop, *arguments, code=-signal.SIGTERM)
    made = sorted(path.name for path in zero123.folder.glob("*_az*.png"))
    assert made == ["disc_az000_el+00_s0.png", "disc_az090_el+00_s0.png"]

    second = json.loads(zero123(*arguments).stdout)
    assert [view["hit"] for view in second["views"]] == [True, True, True, False]
    assert all((zero123.folder / name).is_file() for name in second["outputs"])

    tell = "import atexit, sys\natexit.register(lambda: sys.stderr.write('heavy: %s' % ('torch' in sys.modules)))"
    started = time.monotonic()
    run = zero123.wrapped(tell, *arguments)
    seconds = time.monotonic() - started
    third = json.loads(run.stdout)
    assert third["hit"] and third["outputs"] == second["outputs"] and third["key"] == second["key"]
    assert "heavy: False" in run.stderr, "torch alone takes seconds"
    assert third["seconds"] < 1 and seconds < 10


@pytest.mark.parametrize("sampler", ["ddim-original", "dpm++", "unipc"])
def test_every_sampler_draws(call: Call, sampler: str) -> None:
    quick = [part if part != "ddim" else sampler for part in QUICK]
    _, err = call("disc.png", "--azimuth", "90", "-o", "odd name.png", quick=quick)
    assert size_of("odd name.png") == (SIDE, SIDE) and "arning" not in err
