"""One model out of every layout that weights come in, and what is said of weights that cannot be used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from golden import make_tensor, write_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zero123cli.diffusion import ldm
from zero123cli.diffusion.checkpoints import convert, inspect, load, open_weights
from zero123cli.diffusion.viewmodel import ViewModel
from zero123cli.errors import UsageError, WeightsError, Zero123Error
from zero123cli.machine import Backend
from zero123cli.watch import Caution, Progress

Answers = Mapping[str, Tensor]
Change = Callable[[dict[str, Any]], Any]  # of a description


@dataclass(frozen=True)
class World:
    """One model in every layout, and what it answers without any of our loading."""

    folder: Path
    model: ViewModel  # with the averaged weights
    raw: ViewModel
    expected: Answers
    expected_raw: Answers


LDM = {"ckpt": "trained.ckpt", "safetensors": "trained.safetensors"}
FOLDERS: dict[str, dict[str, Any]] = {
    "Zero123Pipeline": {},
    "Zero123Pipeline fp16": {"variant": ".fp16"},
    "Zero123Pipeline bin": {"suffix": ".bin"},
    "Zero123Pipeline of the first diffusers": {"early": True},
    "Zero123Pipeline of the first diffusers, bin fp16": {"early": True, "suffix": ".bin", "variant": ".fp16"},
    "Zero1to3StableDiffusionPipeline": {"pipeline": "Zero1to3StableDiffusionPipeline"},
    "Zero1to3StableDiffusionPipeline bin": {"pipeline": "Zero1to3StableDiffusionPipeline", "suffix": ".bin"},
    "Zero1to3StableDiffusionPipeline fp16": {"pipeline": "Zero1to3StableDiffusionPipeline", "variant": ".fp16"},
}
COMPACT = {"compact of a ckpt": "ckpt.safetensors", "compact of a folder": "folder.safetensors"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("weights")
    model = small.make_model()
    raw = small.with_other_unet(model)
    state = small.publish(model, raw)
    for name in LDM.values():
        small.write_ldm(folder / name, state)
    small.write_ldm(folder / "raw-only.safetensors", small.publish(raw))
    for name, how in FOLDERS.items():
        small.write_folder(folder / name, model, **how)
    mixed = small.write_folder(folder / "mixed", raw)
    small.write_folder(mixed, raw, variant=".fp16")
    small.write_folder(mixed, model, variant=".fp16_ema", parts=["unet"])
    pose: dict[str, Any] = {"ema": True, "pose_kind": "original", "dtype": "float32"}
    convert(folder / LDM["ckpt"], folder / "ckpt.safetensors", family="zero123-xl", licence="MIT", **pose)
    convert(folder / "Zero123Pipeline", folder / "folder.safetensors", **pose)
    return World(folder, model, raw, small.answers(model), small.answers(raw))


def read(path: Path, **how: Any) -> ViewModel:
    how = {"pose_kind": "original"} | how
    return load(path, how.pop("backend", small.CPU), **how)


def told(path: Path, **how: Any) -> list[str]:
    """The codes of all warnings, and the stages that told how far they are."""
    said: list[str] = []
    read(
        path, watch=lambda message: said.append(message.code if isinstance(message, Caution) else message.stage), **how
    )
    return list(dict.fromkeys(said))


def convert_beside(path: Path) -> None:
    convert(path, path.parent / "out.safetensors", ema=True, pose_kind=None, dtype="float16", overwrite=True)


# The same model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LDM.values(), *FOLDERS, *COMPACT.values()], ids=[*LDM, *FOLDERS, *COMPACT])
def test_every_layout_makes_the_same_model(world: World, name: str) -> None:
    small.agree(small.answers(read(world.folder / name)), world.expected)


@pytest.mark.parametrize("pipeline", small.PROJECTIONS)
def test_a_folder_that_the_libraries_saved_makes_the_same_model(world: World, tmp_path: Path, pipeline: str) -> None:
    small.write_folder(tmp_path, world.model, pipeline, parts=["projection"])
    world.model.unet.save_pretrained(tmp_path / "unet")
    world.model.vae.save_pretrained(tmp_path / "vae", variant="fp16")
    world.model.clip.save_pretrained(tmp_path / "image_encoder")
    small.agree(small.answers(read(tmp_path)), world.expected)


def test_the_model_is_ready_for_use(world: World) -> None:
    model = read(world.folder / LDM["ckpt"])
    assert not model.training and not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.float32, "cpu")}
    assert not any("attn2.to_q" in name or "attn2.to_k" in name for name in model.state_dict()), "not folded"
    kernels = [weight for weight in model.unet.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_backends_precision_is_that_of_every_weight(world: World, dtype: Any) -> None:
    model = read(world.folder / LDM["safetensors"], backend=Backend("cpu", dtype, "CPU"))
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


# Averaged weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LDM.values(), "mixed"])
def test_averaged_weights_are_taken_unless_raw_ones_are_asked_for(world: World, name: str) -> None:
    assert small.error(world.expected_raw["noise"], world.expected["noise"]) > 0.05
    small.agree(small.answers(read(world.folder / name)), world.expected)
    small.agree(small.answers(read(world.folder / name, ema=False)), world.expected_raw)


def test_weights_that_were_never_averaged_are_used_with_a_warning(world: World) -> None:
    path = world.folder / "raw-only.safetensors"
    small.agree(small.answers(read(path)), world.expected_raw)
    assert told(path) == ["no-ema", "loading"]
    assert told(path, ema=False) == ["loading"], "raw ones were asked for"
    assert told(world.folder / LDM["safetensors"]) == ["loading"]


@pytest.mark.parametrize("ema", [True, False])
def test_converting_takes_the_weights_that_loading_takes(world: World, tmp_path: Path, ema: bool) -> None:
    out = tmp_path / "out.safetensors"
    convert(world.folder / LDM["ckpt"], out, ema=ema, pose_kind="original", dtype="float32")
    small.agree(small.answers(read(out)), world.expected if ema else world.expected_raw)
    # What is in a compact file is settled: there is nothing left to choose.
    small.agree(small.answers(read(out, ema=not ema)), world.expected if ema else world.expected_raw)
    assert told(out) == ["loading"]


# The fourth pose number -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LDM.values(), *list(FOLDERS)[::5]])
def test_an_unknown_pose_kind_is_asked_for(world: World, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(world.folder / name, pose_kind=None)
    assert caught.value.exit_code == 2
    assert "--pose-kind original" in caught.value.remedy and "--pose-kind stable" in caught.value.remedy
    for kind in ("original", "stable"):
        assert read(world.folder / name, pose_kind=kind).description.pose_kind == kind


@pytest.mark.parametrize(("kind", "other"), [("original", "stable"), ("stable", "original")])
def test_a_compact_file_knows_its_pose_kind(world: World, tmp_path: Path, kind: Any, other: Any) -> None:
    path = small.write_compact(tmp_path / "model.safetensors", world.model, pose_kind=kind)
    assert read(path, pose_kind=None).description.pose_kind == kind
    assert read(path, pose_kind=kind).description.pose_kind == kind
    with pytest.raises(UsageError, match=kind) as caught:
        read(path, pose_kind=other)
    assert caught.value.exit_code == 2


def test_converting_asks_for_the_pose_kind_too(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        convert(world.folder / LDM["ckpt"], tmp_path / "out.safetensors", ema=True, pose_kind=None, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_the_pose_kind_decides_what_the_model_is_told(world: World) -> None:
    original, stable = (read(world.folder / LDM["safetensors"], pose_kind=kind) for kind in ("original", "stable"))
    small.agree(small.answers(original), world.expected)
    assert small.error(small.answers(stable)["noise"], world.expected["noise"]) > 1e-3


# Weights that cannot be used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["projection.weight", "unet.down_blocks.0.resnets.0.conv1.weight"])
def test_a_weight_too_large_for_half_precision_is_named(world: World, tmp_path: Path, name: str) -> None:
    state = dict(world.model.state_dict())
    state[name] = state[name].clone()
    state[name].view(-1)[5] = 70000.0
    path = tmp_path / "large.safetensors"
    save_file(state, path, {"zero123": json.dumps(asdict(world.model.description))})
    with pytest.raises(WeightsError, match=name) as caught:
        read(path, backend=Backend("cpu", "float16", "CPU"))
    assert caught.value.exit_code == 65 and "--dtype" in caught.value.remedy
    for dtype in ("float32", "bfloat16"):
        read(path, backend=Backend("cpu", dtype, "CPU"))  # type: ignore[arg-type]  # one of the three
    with pytest.raises(WeightsError, match=name):
        convert(path, tmp_path / "half.safetensors", ema=True, pose_kind=None, dtype="float16")
    assert [file.name for file in tmp_path.iterdir()] == ["large.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(world: World, tmp_path: Path, value: float) -> None:
    name = "vae.decoder.conv_out.bias"
    state = dict(world.model.state_dict()) | {name: torch.tensor([0.0, value, 0.0])}
    path = tmp_path / "broken.safetensors"
    save_file(state, path, {"zero123": json.dumps(asdict(world.model.description))})
    with pytest.raises(WeightsError, match=name) as caught:
        read(path)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("what", ["lacks", "shape"])
@pytest.mark.parametrize("name", ["clip.visual_projection.weight", "unet.conv_out.bias", "projection.bias"])
def test_a_compact_file_that_does_not_fit_its_header_is_refused_by_name(
    world: World, tmp_path: Path, name: str, what: str
) -> None:
    state = dict(world.model.state_dict())
    taken = state.pop(name)
    if what == "shape":
        state[name] = torch.cat([taken, taken])
    path = tmp_path / "model.safetensors"
    save_file(state, path, {"zero123": json.dumps(asdict(world.model.description))})
    with pytest.raises(WeightsError, match=f"{what}.*{name}|{name}.*{what}") as caught:
        read(path)
    assert caught.value.exit_code == 65


def within(part: str, key: str, value: Any) -> Change:
    return lambda header: header | {part: header[part] | {key: value}}


def lacking(part: str, key: str) -> Change:
    return lambda header: header | {part: {name: value for name, value in header[part].items() if name != key}}


NO_NUMBERS: tuple[Any, ...] = (None, -1, "x", [], [[]], 10**30)
HEADERS: dict[str, Change] = {
    "a list": lambda header: [header],
    "a number": lambda header: 1,
    "nothing": lambda header: {},
    "an unknown field": lambda header: header | {"colour": 1},
    "no unet": lambda header: {name: value for name, value in header.items() if name != "unet"},
    "an unknown pose kind": lambda header: header | {"pose_kind": "unknown"},
    "another pose kind": lambda header: header | {"pose_kind": "both"},
    "no pose kind": lambda header: header | {"pose_kind": []},
    "other tokens": lambda header: header | {"tokens": "many"},
    "another prediction": lambda header: header | {"predicts": "weather"},
    "a size that the codec cannot halve": lambda header: header | {"size": 33},
    "no size at all": lambda header: header | {"size": 0},
    **{
        f"{key} is {value!r}": lambda header, key=key, value=value: header | {key: value}
        for key, values in {
            "unet": (None, [], "x", -1, {"a": 1}),
            "clip": (None, [], "x", -1, {"a": 1}),
            "vae": ([], {}, "x", -1, {"a": 1}),
            "size": NO_NUMBERS,
            "latent_scale": (None, "x", [], 0),
            "licence": (None, 1, []),
            "family": (None, 1, {}),
        }.items()
        for value in values
    },
    **{
        f"{part}.{key} is {value!r}": within(part, key, value)
        for part, key in [
            ("unet", "block_out_channels"),
            ("unet", "in_channels"),
            ("unet", "cross_attention_dim"),
            ("unet", "attention_head_dim"),
            ("unet", "down_block_types"),
            ("vae", "block_out_channels"),
            ("vae", "latent_channels"),
            ("clip", "projection_dim"),
            ("clip", "image_size"),
            ("clip", "hidden_act"),
        ]
        for value in NO_NUMBERS
    },
    **{
        f"no {part}.{key}": lacking(part, key)
        for part, key in [("unet", "cross_attention_dim"), ("vae", "block_out_channels"), ("clip", "projection_dim")]
    },
}


def said_of(use: Callable[[Path], Any], path: Path) -> str:
    """What a wrong file is refused with, or what else came of it."""
    try:
        use(path)
    except WeightsError as error:
        return "refused" if str(path) in str(error) and error.remedy else f"says too little: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return "accepted"


@pytest.mark.parametrize("use", [read, inspect, convert_beside], ids=["load", "inspect", "convert"])
def test_a_description_that_is_wrong_is_refused(world: World, tmp_path: Path, use: Callable[[Path], Any]) -> None:
    raw = (world.folder / COMPACT["compact of a ckpt"]).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    listing = json.loads(raw[8 : 8 + length])
    told_there = json.loads(listing["__metadata__"]["zero123"])
    path = tmp_path / "model.safetensors"
    said = {}
    for name, change in HEADERS.items():
        listing["__metadata__"]["zero123"] = json.dumps(change(told_there))
        text = json.dumps(listing).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        said[name] = said_of(use, path)
    assert {name: what for name, what in said.items() if what != "refused"} == {}


@pytest.mark.parametrize("text", ["", "{", "nul", '"', "[" * 100_000, '{"unet": NaN}', "\u0000"])
def test_a_header_that_is_no_json_is_refused(world: World, tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"projection.bias": world.model.projection.bias}, path, {"zero123": text})
    with pytest.raises(WeightsError, match="description"):
        read(path)


# Folders that cannot be used ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return small.write_folder(tmp_path / "pipeline", world.model)


def refused(path: Path) -> Zero123Error:
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert caught.value.exit_code == 65 and caught.value.remedy and path.name in str(caught.value)
    return caught.value


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "clip_camera_projection"])
def test_a_folder_without_one_of_its_parts_is_refused_by_its_name(folder: Path, part: str) -> None:
    (folder / part).rename(folder / "elsewhere")
    assert part in str(refused(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder", "clip_camera_projection"])
def test_a_part_without_weights_is_refused_by_its_name(folder: Path, part: str) -> None:
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    assert part in str(refused(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_a_configuration_that_is_wrong_is_refused(folder: Path, part: str) -> None:
    config = folder / part / "config.json"
    config.unlink()
    said = {"no file": said_of(read, folder)}
    for text in ("", "{", "[]", "{}", '{"block_out_channels": 3}', '{"hidden_size": "many"}', "\x00"):
        config.write_text(text)
        said[text] = said_of(read, folder)
    assert {text: what for text, what in said.items() if what != "refused"} == {}


def test_an_empty_folder_and_another_pipeline_are_no_zero123(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a Zero123 pipeline" in str(refused(empty))
    (folder / "clip_camera_projection").rename(folder / "text_encoder")
    assert "not a Zero123 pipeline" in str(refused(folder))


def test_a_plain_stable_diffusion_unet_in_a_folder_is_refused(world: World, folder: Path) -> None:
    model = small.make_model(replace(small.SMALL, unet=small.UNET | {"in_channels": 4}))
    save_file(model.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert "conv_in.weight" in str(refused(folder))
    small.write_folder(folder, model, parts=["unet"])
    assert "4" in str(refused(folder)), "the model is told four channels and given eight"


# Converting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_compact_file_opens_with_the_safetensors_library(world: World, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.safetensors"
    convert(world.folder / LDM["ckpt"], out, ema=True, pose_kind="stable", dtype=dtype, family="mine", licence="MIT")
    expected = world.model.state_dict()
    with safe_open(out, "pt") as file:
        assert set(file.keys()) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(file.get_tensor(name), tensor.to(getattr(torch, dtype))), name
        header = json.loads(file.metadata()["zero123"])
    assert (header["family"], header["licence"], header["pose_kind"]) == ("mine", "MIT", "stable")
    assert header["unet"]["block_out_channels"] == [32, 64]
    assert int.from_bytes(out.read_bytes()[:8], "little") % 8 == 0, "tensors that are not aligned cannot be mapped"


def test_the_same_weights_make_the_same_file_whatever_they_lay_in(world: World, tmp_path: Path) -> None:
    for name in LDM.values():
        convert(world.folder / name, tmp_path / name, ema=True, pose_kind="original", dtype="float16")
    assert len({(tmp_path / name).read_bytes() for name in LDM.values()}) == 1
    convert(tmp_path / LDM["ckpt"], tmp_path / "again", ema=True, pose_kind=None, dtype="float16")
    assert (tmp_path / "again").read_bytes() == (tmp_path / LDM["ckpt"]).read_bytes()


def test_an_existing_file_is_replaced_only_when_told(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    how: dict[str, Any] = {"ema": True, "pose_kind": "original", "dtype": "float16"}
    with pytest.raises(FileExistsError):
        convert(world.folder / LDM["safetensors"], out, **how)
    assert out.read_bytes() == b"precious"
    convert(world.folder / LDM["safetensors"], out, overwrite=True, **how)
    assert read(out, pose_kind=None).description.pose_kind == "original"
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_refused_file_is_refused_before_it_is_converted(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    state = small.publish(world.model)
    del state["first_stage_model.post_quant_conv.bias"]
    small.write_ldm(tmp_path / "broken.safetensors", state)
    with pytest.raises(WeightsError, match="post_quant_conv"):
        convert(tmp_path / "broken.safetensors", out, ema=True, pose_kind="original", dtype="float16", overwrite=True)
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_conversion_that_is_stopped_leaves_nothing_behind(
    world: World, tmp_path: Path, stop: type[BaseException]
) -> None:
    def watch(message: Progress | Caution) -> None:
        if isinstance(message, Progress) and message.done == 200:
            assert list(tmp_path.glob(".zero123-*.tmp")), "it is on its way"
            raise stop

    out = tmp_path / "out.safetensors"
    with pytest.raises(stop):
        convert(world.folder / LDM["ckpt"], out, ema=True, pose_kind="original", dtype="float16", watch=watch)
    assert not list(tmp_path.iterdir())


# Memory ---------------------------------------------------------------------------------------------------------------


def peak_during(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and by how many MB the process grew at most meanwhile."""

    def status(name: str) -> float:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    before = status("VmRSS")
    result = work()
    return result, status("VmHWM") - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a stretch of work")
@pytest.mark.parametrize("how", ["load", "convert"])
def test_optimiser_state_and_raw_weights_are_never_in_memory(world: World, tmp_path: Path, how: str) -> None:
    wide = 40_000  # of CLIP's inner layer: 4 tensors of 10 MB
    description = replace(small.SMALL, clip=small.CLIP | {"intermediate_size": wide})
    with torch.device("meta"):
        slots = ViewModel(description).state_dict()
    state = small.publish(world.model, world.raw)
    for name, slot in slots.items():
        if wide in slot.shape:
            state[ldm.place(name, description.unet, small.VAE, ema=False).name] = torch.full(slot.shape, 0.01)
    needed = sum(slot.numel() for slot in slots.values()) * 4 / 2**20
    moments = {f"optimizer.{k}": torch.zeros(5_000_000) for k in range(8)}  # 160 MB
    path = tmp_path / "large.ckpt"
    write_checkpoint(path, state | moments)
    assert path.stat().st_size > 4 * needed * 2**20
    del state, moments
    load(world.folder / LDM["ckpt"], small.CPU, pose_kind="original")  # what is set up once is not counted
    if how == "load":
        model, peak = peak_during(lambda: load(path, small.CPU, pose_kind="original"))
        assert sum(weight.numel() for weight in model.parameters()) > wide * 250
        assert peak < needed + 30
    else:
        convert_it = lambda: convert(path, tmp_path / "out", ema=True, pose_kind="original", dtype="float16")  # noqa: E731
        assert peak_during(convert_it)[1] < 60, "no more than a tensor at a time"


# Looking without loading ----------------------------------------------------------------------------------------------


def test_inspecting_tells_what_a_checkpoint_is(world: World) -> None:
    path = world.folder / LDM["ckpt"]
    facts = inspect(path)
    parts = {name: sum(w.numel() for w in getattr(world.model, name).parameters()) for name in facts["parameters"]}
    assert facts["parameters"] == parts and set(parts) == {"unet", "vae", "clip", "projection"}
    assert facts["kind"] == "ldm" and facts["pose_kind"] == "unknown" and facts["ema"] is True
    assert facts["precision"] == "float32" and facts["unet"] == (32, 64) and facts["context"] == "one token"
    assert facts["bytes"] == path.stat().st_size and facts["path"] == str(path)
    assert any("ModelCheckpoint" in note for note in facts["skipped"])


def test_inspecting_tells_what_a_compact_file_and_a_folder_are(world: World) -> None:
    compact = inspect(world.folder / "ckpt.safetensors")
    assert (compact["kind"], compact["family"], compact["licence"]) == ("compact", "zero123-xl", "MIT")
    assert (compact["pose_kind"], compact["ema"], compact["tensors"]) == ("original", False, 374)
    half = inspect(world.folder / "Zero123Pipeline fp16")
    assert (half["kind"], half["precision"], half["pose_kind"]) == ("diffusers", "float16", "unknown")
    assert half["parameters"] == compact["parameters"] == inspect(world.folder / LDM["ckpt"])["parameters"]
    assert inspect(world.folder / "mixed")["ema"] is True and half["ema"] is False


def test_inspecting_reads_no_tensor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from zero123cli.diffusion.tensorfiles import TensorFile

    monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("a tensor was read"))
    for name in (*LDM.values(), "mixed", "ckpt.safetensors"):
        json.dumps(inspect(world.folder / name))


def test_inspecting_names_what_is_missing(world: World, tmp_path: Path) -> None:
    state = small.publish(world.model)
    del state["cc_projection.bias"]
    with pytest.raises(WeightsError, match=r"cc_projection\.bias"):
        inspect(small.write_ldm(tmp_path / "model.safetensors", state))


def test_files_are_closed_with_the_stack(world: World) -> None:
    with ExitStack() as stack:
        weights = open_weights(world.folder / "mixed", stack, ema=True)
        assert weights.find("unet.conv_in.bias").file.path.name == "diffusion_pytorch_model.fp16_ema.safetensors"
        assert weights.find("vae.quant_conv.bias").file.path.name == "diffusion_pytorch_model.safetensors"
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        targets = [str(link.readlink()) for link in descriptors.iterdir() if link.is_symlink()]
        assert not any(str(world.folder) in target for target in targets)


def test_the_numbers_of_the_test_are_those_of_the_golden_recipe() -> None:
    expected = torch.from_numpy(make_tensor("x.weight", [3, 4])).half().float()
    assert torch.equal(small.weights("x.weight", (3, 4)), expected)
