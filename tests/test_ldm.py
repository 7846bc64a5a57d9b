"""The published layout: networks told from shapes, every tensor in its place, everything else refused by name."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import save_file
from torch import Tensor

from zero123cli.diffusion import checkpoints, ldm
from zero123cli.diffusion.checkpoints import load, open_weights
from zero123cli.diffusion.viewmodel import Description, ViewModel
from zero123cli.errors import WeightsError

Arguments = dict[str, Any]


def shapes_of(description: Description) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file of such a model; no memory is taken."""
    with torch.device("meta"):
        model = ViewModel(description)
    return {name: tuple(tensor.shape) for name, tensor in small.publish(model, model).items()}


def unet_of(channels: tuple[int, ...], attended: str, layers: int, context: int, heads: int = 8) -> Arguments:
    """`attended` has a letter a level, the finest first: x where it attends."""
    down = tuple("CrossAttnDownBlock2D" if level == "x" else "DownBlock2D" for level in attended)
    up = tuple("CrossAttnUpBlock2D" if level == "x" else "UpBlock2D" for level in reversed(attended))
    return small.UNET | {
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": layers,
        "cross_attention_dim": context,
        "attention_head_dim": heads,
    }


def vae_of(channels: tuple[int, ...], layers: int) -> Arguments:
    levels = {"down_block_types": ("DownEncoderBlock2D",) * len(channels)}
    levels["up_block_types"] = ("UpDecoderBlock2D",) * len(channels)
    return small.VAE | {"block_out_channels": channels, "layers_per_block": layers} | levels


def clip_of(width: int, layers: int, patch: int, side: int, out: int) -> Arguments:
    return small.CLIP | {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "projection_dim": out,
        "image_size": side,
        "patch_size": patch,
    }


PUBLISHED = Description(
    "zero123",
    "original",
    unet_of((320, 640, 1280, 1280), "xxx-", 2, 768),
    clip_of(1024, 24, 14, 224, 768),
    vae_of((128, 256, 512, 512), 2),
)
NETWORKS = {
    "small": small.SMALL,
    "published": PUBLISHED,
    "one level": replace(small.SMALL, unet=unet_of((32,), "x", 3, 8), vae=vae_of((32,), 1)),
    "three levels": replace(small.SMALL, unet=unet_of((32, 96, 160), "xxx", 2, 24), vae=vae_of((32, 64, 64), 3)),
    "attends in the middle": replace(small.SMALL, unet=unet_of((32, 64, 64, 96), "-x--", 1, 20)),
    "attends at the coarsest": replace(small.SMALL, unet=unet_of((64, 64), "-x", 2, 768)),
    "attends nowhere but the middle block": replace(small.SMALL, unet=unet_of((32, 32, 32), "---", 1, 16)),
    "same width": replace(small.SMALL, unet=unet_of((64, 64, 64), "x-x", 4, 16)),
    "five levels": replace(
        small.SMALL, unet=unet_of((32, 32, 64, 64, 96), "xxxx-", 1, 16), vae=vae_of((32, 64, 64, 96, 96), 2)
    ),
    "another clip": replace(small.SMALL, clip=clip_of(128, 5, 16, 96, 40)),
    "colour and depth": replace(small.SMALL, unet=small.UNET | {"in_channels": 10, "out_channels": 5}),
}


@pytest.mark.parametrize("description", NETWORKS.values(), ids=list(NETWORKS))
def test_networks_are_told_from_shapes_alone(description: Description) -> None:
    assert ldm.measure(shapes_of(description)) == (description.unet, description.clip, description.vae)


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "averaged"])
@pytest.mark.parametrize("description", NETWORKS.values(), ids=list(NETWORKS))
def test_every_tensor_of_ours_has_a_place_of_its_own_and_all_places_are_taken(
    description: Description, ema: bool
) -> None:
    with torch.device("meta"):
        ours = list(ViewModel(description).state_dict())
    assert description.vae
    places = [ldm.place(name, description.unet, description.vae, ema=ema).name for name in ours]
    shared = [place for place in places if "in_proj" in place]
    assert len(set(places)) == len(places) - len(shared) * 2 // 3, "only queries, keys and values share a tensor"
    needed = set(shapes_of(description)) - small.leftovers().keys()
    other = ldm.UNET if ema else ldm.EMA
    assert set(places) == {name for name in needed if not name.startswith(other)}


PLACES = {  # of the published network, after the table of its blocks
    "unet.conv_in.weight": "input_blocks.0.0.weight",
    "unet.time_embedding.linear_1.weight": "time_embed.0.weight",
    "unet.time_embedding.linear_2.bias": "time_embed.2.bias",
    "unet.down_blocks.0.resnets.0.conv1.weight": "input_blocks.1.0.in_layers.2.weight",
    "unet.down_blocks.0.resnets.1.norm1.bias": "input_blocks.2.0.in_layers.0.bias",
    "unet.down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "unet.down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight": (
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "unet.down_blocks.2.downsamplers.0.conv.bias": "input_blocks.9.0.op.bias",
    "unet.down_blocks.3.resnets.1.time_emb_proj.weight": "input_blocks.11.0.emb_layers.1.weight",
    "unet.mid_block.resnets.0.norm2.weight": "middle_block.0.out_layers.0.weight",
    "unet.mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
    "unet.mid_block.resnets.1.conv2.weight": "middle_block.2.out_layers.3.weight",
    "unet.up_blocks.0.resnets.0.conv1.weight": "output_blocks.0.0.in_layers.2.weight",
    "unet.up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "unet.up_blocks.1.attentions.0.norm.weight": "output_blocks.3.1.norm.weight",
    "unet.up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
    "unet.up_blocks.2.upsamplers.0.conv.bias": "output_blocks.8.2.conv.bias",
    "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight": (
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "unet.conv_norm_out.weight": "out.0.weight",
    "unet.conv_out.bias": "out.2.bias",
    "vae.encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
    "vae.encoder.down_blocks.2.downsamplers.0.conv.weight": "encoder.down.2.downsample.conv.weight",
    "vae.encoder.mid_block.resnets.0.conv1.weight": "encoder.mid.block_1.conv1.weight",
    "vae.encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
    "vae.encoder.conv_norm_out.bias": "encoder.norm_out.bias",
    "vae.decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
    "vae.decoder.up_blocks.0.resnets.2.conv2.weight": "decoder.up.3.block.2.conv2.weight",
    "vae.decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
    "vae.decoder.up_blocks.3.resnets.0.conv_shortcut.weight": "decoder.up.0.block.0.nin_shortcut.weight",
    "vae.quant_conv.weight": "quant_conv.weight",
    "vae.post_quant_conv.bias": "post_quant_conv.bias",
    "clip.vision_model.embeddings.class_embedding": "class_embedding",
    "clip.vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "clip.vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "clip.vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "clip.vision_model.encoder.layers.23.layer_norm2.bias": "transformer.resblocks.23.ln_2.bias",
    "clip.vision_model.encoder.layers.7.self_attn.q_proj.weight": "transformer.resblocks.7.attn.in_proj_weight",
    "clip.vision_model.encoder.layers.7.self_attn.v_proj.bias": "transformer.resblocks.7.attn.in_proj_bias",
    "clip.vision_model.encoder.layers.7.self_attn.out_proj.weight": "transformer.resblocks.7.attn.out_proj.weight",
    "clip.vision_model.encoder.layers.7.mlp.fc2.weight": "transformer.resblocks.7.mlp.c_proj.weight",
    "clip.vision_model.post_layernorm.bias": "ln_post.bias",
    "clip.visual_projection.weight": "proj",
    "projection.weight": "cc_projection.weight",
}


@pytest.mark.parametrize(("ours", "published"), PLACES.items(), ids=list(PLACES))
def test_places_of_the_published_network(ours: str, published: str) -> None:
    prefix = {"unet": ldm.UNET, "vae": ldm.VAE, "clip": ldm.CLIP, "projection": ""}[ours.partition(".")[0]]
    assert PUBLISHED.vae
    assert ldm.place(ours, PUBLISHED.unet, PUBLISHED.vae, ema=False).name == prefix + published
    if prefix == ldm.UNET:
        dotless = "model_ema.diffusion_model" + published.replace(".", "")
        assert ldm.place(ours, PUBLISHED.unet, PUBLISHED.vae, ema=True).name == dotless


def test_the_published_file_has_as_many_tensors_and_values_as_it_is_known_for() -> None:
    shapes = shapes_of(PUBLISHED)

    def count(prefix: str) -> tuple[int, int]:
        found = [torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(prefix)]
        return len(found), sum(found)

    assert count("model.diffusion_model.") == (686, 859_532_484 + 0)
    assert count("first_stage_model.encoder.") == (106, 34_163_592)
    assert count("first_stage_model.decoder.") == (138, 49_490_179)
    assert count("cc_projection.") == (2, 593_664)
    assert count("model_ema.")[0] == 686 + 2


def test_queries_keys_and_values_are_the_thirds_of_one_tensor_in_this_order() -> None:
    joined = torch.arange(6.0).reshape(6, 1)
    for third, letter in enumerate("qkv"):
        name = f"clip.vision_model.encoder.layers.0.self_attn.{letter}_proj.weight"
        change = ldm.place(name, small.UNET, small.VAE, ema=False).change
        assert change and change(joined).flatten().tolist() == [2 * third, 2 * third + 1]


# What does not fit ----------------------------------------------------------------------------------------------------


LEAN = replace(small.SMALL, unet=unet_of((32, 32), "x-", 1, 16), clip=clip_of(64, 1, 14, 28, 12))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    model = small.make_model(LEAN)
    return small.publish(model, small.with_other_unet(model))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to write; networks that were built once without weights are used again, which takes most of the time."""
    built: dict[str, ViewModel] = {}
    build = checkpoints.build

    def remembered(description: Description) -> ViewModel:
        if repr(description) not in built:
            built[repr(description)] = build(description)
        return built[repr(description)]

    monkeypatch.setattr(checkpoints, "build", remembered)
    return tmp_path / "model.safetensors"


def kind_of(name: str) -> tuple[str, ...]:
    """Which network, and the last two words of the name."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return name[:7], *words[-2:]


def needed(state: Mapping[str, Tensor], ema: bool) -> list[str]:
    """The first name of each kind, and ten more."""
    other = ldm.UNET if ema else ldm.EMA
    names = [name for name in state if name not in small.leftovers() and not name.startswith(other)]
    first = {kind_of(name): name for name in reversed(names) if not name.startswith(ldm.EMA)}
    return list(dict.fromkeys([*first.values(), *random.Random(3).sample(names, 10)]))


def refusal(file: Path, state: Mapping[str, Tensor], ema: bool) -> WeightsError:
    small.write_ldm(file, state)
    with pytest.raises(WeightsError) as caught:
        load(file, small.CPU, ema=ema, pose_kind="original")
    assert caught.value.exit_code == 65
    assert str(file) in str(caught.value)
    assert caught.value.remedy
    return caught.value


def told_of(file: Path, state: Mapping[str, Tensor], ema: bool) -> str:
    """What is said of a file that must be refused, or what else came of it."""
    small.write_ldm(file, state)
    try:
        load(file, small.CPU, ema=ema, pose_kind="original")
    except WeightsError as error:
        return error.what
    except Exception as error:
        return f"crashed: {error!r}"
    return "loaded"


@pytest.mark.parametrize("ema", [pytest.param(False, marks=pytest.mark.slow), True], ids=["raw", "averaged"])
def test_a_missing_tensor_is_refused_by_name(file: Path, state: dict[str, Tensor], ema: bool) -> None:
    names = needed(state, ema) + [ldm.EMA + "diffusion_modelinput_blocks00weight"] * ema
    said = {name: told_of(file, {other: state[other] for other in state if other != name}, ema) for name in names}
    assert {name: told for name, told in said.items() if name not in told} == {}


@pytest.mark.parametrize(
    "change",
    [pytest.param("longer", marks=pytest.mark.slow), pytest.param("another rank", marks=pytest.mark.slow), "empty"],
)
def test_a_tensor_of_another_shape_is_refused_by_name(file: Path, state: dict[str, Tensor], change: str) -> None:
    def wrong(tensor: Tensor) -> Tensor:
        if change == "longer":
            return torch.cat([tensor, tensor[:1]])
        return tensor[None] if change == "another rank" else tensor[:0]

    names = needed(state, ema=True)[:: 1 if change == "longer" else 2]
    said = {name: told_of(file, state | {name: wrong(state[name])}, ema=True) for name in names}
    others = {name: told for name, told in said.items() if name not in told}
    # One by which the others are measured may be told of by one that does not agree with it.
    assert {name: told for name, told in others.items() if not told.startswith(("the tensor ", "its UNet "))} == {}
    assert len(others) < 0.1 * len(names)


@pytest.mark.parametrize(
    "name",
    [
        ldm.UNET + "middle_block.1.transformer_blocks.1.norm1.weight",
        ldm.UNET + "input_blocks.4.0.in_layers.0.weight",
        "first_stage_model.encoder.down.1.attn.0.q.weight",
        ldm.CLIP + "attnpool.q_proj.weight",
    ],
    ids=["a deeper transformer", "a further block", "attention in the codec", "another kind of clip"],
)
def test_a_network_with_a_part_that_ours_have_not_is_refused_by_name(
    file: Path, state: dict[str, Tensor], name: str
) -> None:
    assert name in str(refusal(file, state | {name: torch.ones(32)}, ema=False))


@pytest.mark.parametrize("values", ["nan", "inf"])
def test_a_tensor_with_values_that_are_no_numbers_is_refused_by_name(
    file: Path, state: dict[str, Tensor], values: str
) -> None:
    name = ldm.CLIP + "ln_post.bias"
    broken = state[name].clone()
    broken[3] = float(values)
    assert name in str(refusal(file, state | {name: broken}, ema=True))


# Other files ----------------------------------------------------------------------------------------------------------


def without(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("channels", "what"), [(4, "plain Stable Diffusion"), (9, "inpainting"), (8, "instruction-edit"), (5, "another")]
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_another_diffusion_model_is_called_what_it_is(
    tmp_path: Path, state: dict[str, Tensor], channels: int, what: str, suffix: str
) -> None:
    first = ldm.UNET + "input_blocks.0.0.weight"
    kept = without(state, "cc_projection.") | {first: small.weights("first", (32, channels, 3, 3))}
    error = refusal(tmp_path / f"model{suffix}", kept, ema=True)
    assert what in error.what and ldm.MARK in error.what and "zero123 models" in error.remedy


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.ones(3)},
        {"encoder.embeddings.weight": torch.ones(3, 4)},
        {ldm.UNET + "input_blocks.0.0.weight": torch.ones(4)},
        {"cc_projection.bias": torch.ones(4)},
    ],
    ids=["one tensor", "a language model", "a convolution of another rank", "half of the mark"],
)
def test_a_file_of_other_tensors_is_no_zero123_model(file: Path, content: dict[str, Tensor]) -> None:
    error = refusal(file, content, ema=True)
    assert "not a Zero123 model" in error.what and ldm.MARK in error.what


def test_the_mark_alone_is_refused_by_what_is_missing(file: Path) -> None:
    said = str(refusal(file, {ldm.MARK: torch.ones(16, 16)}, ema=True))
    assert "input_blocks.0.0.weight" in said


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "a b.bin", "weights"])
@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>", bytes(5000), b"PK\x03\x04" + bytes(80)], ids=repr)
def test_a_file_that_holds_no_tensors_is_refused_whatever_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load(path, small.CPU, pose_kind="original")
    assert caught.value.exit_code == 65 and caught.value.remedy and str(path) in str(caught.value)


def test_tensors_are_recognised_and_not_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "holiday.jpg"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with ExitStack() as stack:
        weights = open_weights(path, stack, ema=True)
        assert (weights.kind, weights.has_ema, weights.ema) == ("ldm", True, True)
        assert (weights.description.unet, weights.description.clip) == (LEAN.unet, LEAN.clip)
