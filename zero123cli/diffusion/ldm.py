"""The names and shapes of the published LDM checkpoints: where each of our tensors lies, and which networks they make.

Our names are those of diffusers and transformers behind `unet.`, `vae.`, `clip.` and `projection.`. For each the
function `place` says the published name and how its tensor is changed; `measure` reads the widths off the shapes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

UNET, EMA, VAE, CLIP = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.model.visual."
MARK = "cc_projection.weight"  # what no other Stable Diffusion file has

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Where a tensor of ours lies in a file."""

    name: str
    change: Callable[[Tensor], Tensor] | None = None


Arguments = dict[str, Any]


def measure(shapes: Shapes) -> tuple[Arguments, Arguments, Arguments]:
    """Arguments of the UNet, of CLIP and of the VAE that these tensors make.

    A KeyError names the first that is missing, a ValueError one whose shape makes no network.
    """
    return measure_unet(shapes), measure_clip(shapes), measure_vae(shapes)


def shape_of(shapes: Shapes, name: str, rank: int, *, of: int = 1) -> tuple[int, ...]:
    """The shape of a tensor that widths are read off; its first is a multiple of `of`."""
    shape = shapes[name]
    if len(shape) != rank or not all(shape) or shape[0] % of:
        raise ValueError(name)
    return shape


def measure_unet(shapes: Shapes) -> dict[str, Any]:
    first = shape_of(shapes, UNET + "input_blocks.0.0.weight", 4)
    parts = {".".join(name.split(".")[2:6]) for name in shapes if name.startswith(UNET)}  # input_blocks.1.0.in_layers
    channels: list[int] = []
    attended: list[bool] = []
    per_level = 0
    block, level_size = 1, 0
    while here := {part for part in parts if part.startswith(f"input_blocks.{block}.")}:
        if f"input_blocks.{block}.0.op" in here:  # on to the next level
            per_level, level_size = level_size, 0
        else:
            level_size += 1
            if level_size == 1:
                channels.append(shape_of(shapes, f"{UNET}input_blocks.{block}.0.in_layers.2.weight", 4, of=32)[0])
                attended.append(any(part.startswith(f"input_blocks.{block}.1.") for part in here))
        block += 1
    down = tuple("CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attended)
    up = tuple("CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attended))
    return {
        "sample_size": 32,
        "in_channels": first[1],
        "out_channels": shape_of(shapes, UNET + "out.2.weight", 4)[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": per_level or level_size,
        "cross_attention_dim": shape_of(shapes, f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "attention_head_dim": 8,  # the number of heads, fixed in the published configuration
        "down_block_types": down,
        "up_block_types": up,
    }


def measure_vae(shapes: Shapes) -> dict[str, Any]:
    levels = count(shapes, VAE + r"encoder\.down\.(\d+)\.")
    blocks = count(shapes, VAE + r"encoder\.down\.0\.block\.(\d+)\.")
    firsts = [f"{VAE}encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    channels = tuple(shape_of(shapes, first, 4, of=32)[0] for first in firsts)
    return {
        "in_channels": shape_of(shapes, VAE + "encoder.conv_in.weight", 4)[1],
        "out_channels": shape_of(shapes, VAE + "decoder.conv_out.weight", 4)[0],
        "latent_channels": shape_of(shapes, VAE + "post_quant_conv.weight", 4)[0],
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "sample_size": 256,
    }


def measure_clip(shapes: Shapes) -> dict[str, Any]:
    width, _, patch, _ = shape_of(shapes, CLIP + "conv1.weight", 4, of=64)
    places = shape_of(shapes, CLIP + "positional_embedding", 2)[0]
    return {
        "hidden_size": width,
        "intermediate_size": shape_of(shapes, CLIP + "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": count(shapes, CLIP + r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": width // 64,
        "projection_dim": shape_of(shapes, CLIP + "proj", 2)[1],
        "image_size": patch * round((places - 1) ** 0.5),
        "patch_size": patch,
        "hidden_act": "quick_gelu",
    }


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand where `pattern` has its group, from 0 upwards."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


# Where each tensor lies -----------------------------------------------------------------------------------------------


def place(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any], *, ema: bool) -> Place:
    """Where our tensor `name` lies in a published file."""
    part, _, rest = name.partition(".")
    if part == "unet":
        published = place_unet(rest, unet)
        return Place(EMA + ("diffusion_model." + published).replace(".", "") if ema else UNET + published)
    if part == "vae":
        return place_vae(rest, len(vae["block_out_channels"]))
    if part == "clip":
        return place_clip(rest)
    return Place("cc_projection." + rest)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def place_unet(name: str, unet: Mapping[str, Any]) -> str:
    step = unet["layers_per_block"] + 1
    for ours, published in UNET_ENDS.items():
        if name.startswith(ours + "."):
            rest = name.removeprefix(ours + ".")
            return f"{published}.{rename_resnet(rest) if 'resnets' in ours else rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert found, name
    way, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * step}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        behind = 2 if "CrossAttn" in unet["up_block_types"][level] else 1
        return f"output_blocks.{level * step + step - 1}.{behind}.{rest}"
    block = f"input_blocks.{1 + level * step + index}" if way == "down" else f"output_blocks.{level * step + index}"
    return f"{block}.0.{rename_resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def rename_resnet(rest: str) -> str:
    layer, _, kind = rest.rpartition(".")
    return f"{RESNET[layer]}.{kind}"


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def place_vae(name: str, levels: int) -> Place:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    found = re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name)
    if not found:
        return Place(VAE + name)
    published = f"{VAE}{found[1]}.mid.attn_1.{ATTENTION[found[2]]}.{found[3]}"
    is_convolution = found[3] == "weight" and found[2] != "group_norm"  # of 1x1 there, a plain matrix here
    return Place(published, drop_kernel if is_convolution else None)


def drop_kernel(weight: Tensor) -> Tensor:  # (O, I, 1, 1) -> (O, I)
    return weight[..., 0, 0] if weight.ndim == 4 else weight


CLIP_ENDS = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
CLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def place_clip(name: str) -> Place:
    if name in CLIP_ENDS:
        return Place(CLIP + CLIP_ENDS[name])
    if name == "visual_projection.weight":
        return Place(CLIP + "proj", transpose)
    found = re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert found, name
    block = f"{CLIP}transformer.resblocks.{found[1]}"
    if found[2] == "self_attn.out_proj":
        return Place(f"{block}.attn.out_proj.{found[3]}")
    if found[2] in CLIP_LAYER:
        return Place(f"{block}.{CLIP_LAYER[found[2]]}.{found[3]}")
    third = ("q_proj", "k_proj", "v_proj").index(found[2].removeprefix("self_attn."))
    return Place(f"{block}.attn.in_proj_{found[3]}", THIRDS[third])


def transpose(weight: Tensor) -> Tensor:
    return weight.T if weight.ndim == 2 else weight


def third_of(weight: Tensor, third: int) -> Tensor:
    return weight.chunk(3)[third] if weight.ndim and len(weight) > 2 else weight


# Queries, keys and values lie in one tensor.
THIRDS = tuple(functools.partial(third_of, third=third) for third in range(3))
