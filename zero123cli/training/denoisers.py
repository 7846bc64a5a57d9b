"""The tasks of the view-conditioned denoisers: noise is put on a picture of an object, and taken away again by a
network that is shown another picture of it and told the pose between them (arXiv:2303.11328).

Three are trained here. The embedded one joins the rendering of the photo's predicted volume to the noise, and its
pictures are their own latents; a second, for comparison, has no volume and joins the photo itself. The paper's starts
from an image-variations Stable Diffusion.
Letters: P photos, B pictures asked for, K context tokens, D their width, C channels, S side, h and w of a latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts import HEAD
from ..cameras import TRAINING_DISTANCE, Viewpoint, relative_pose
from ..diffusion import checkpoints
from ..diffusion.sampling import SAMPLERS
from ..diffusion.tensorfiles import open_tensors
from ..diffusion.viewmodel import STEPS, Description, ViewModel
from ..diffusion.volume import Framing
from ..errors import SettingsError, WeightsError
from ..machine import Backend
from ..settings import TrainSettings
from .albums import open_album
from .train import Batch
from .viewsets import hold_out, refuse_size
from .volumes import on_white, vary_colours

PROJECTION_RATE = 10  # times the learning rate of the other weights
DROPPED = 0.05  # share of pictures for each kind of a missing condition: the tokens, both, what is concatenated
GUESSED = 0.75  # share of pictures that are guessed from what the volume shows of them, not from themselves
OUTLINE = 0.05  # weight of outlines; the mean square alone is content with fog
JUDGED_STEPS = 8  # of the samples that are judged and shown
SHOWN = 12  # pictures
LARGEST = 4 / 3  # a picture is never enlarged more than this


@dataclass(frozen=True)
class Recipe:
    """How one kind of denoiser is trained."""

    describe: Callable[
        [Path, int], Description
    ]  # of what `train.base` or `train.init` names, and pictures of that side
    build: Callable[[Path, Description], ViewModel]
    trained: tuple[str, ...]  # the networks that learn
    asked: int  # pictures asked for of each photo; what the photo itself costs is shared by them
    varied: bool  # mirrored, in other colours and another light
    framed: bool  # pictures asked for are cut at the photo's scale, as the program asks for them
    raw: tuple[str, ...] = ()  # networks that learn and whose weights are not averaged
    based: bool = True  # whether it starts from weights


class DenoiserTask:
    """A view model whose UNet learns to see the noise."""

    def __init__(self, data: Path, recipe: Recipe, settings: TrainSettings) -> None:
        self.recipe = recipe
        self.base = Path(settings.base or settings.init)
        if recipe.based and not (settings.base or settings.init):
            raise SettingsError(
                "nothing is named to start from", where="train.base", remedy="name weights: --base FILE"
            )
        self.album = open_album(data)
        self.description = recipe.describe(self.base, self.album.size)
        refuse_size(data, self.album.size, self.description.size)
        self.own, self.held = hold_out(self.album.names)

    def facts(self) -> dict[str, Any]:
        """What the weights do not say by themselves."""
        return asdict(self.description)

    def build(self) -> nn.Module:
        model = self.recipe.build(self.base, self.description).requires_grad_(False)
        for name in self.recipe.trained:
            getattr(model, name).requires_grad_(True)
        return model

    def raw(self, name: str) -> bool:
        return name.partition(".")[0] in self.recipe.raw

    def groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        assert isinstance(model, ViewModel)
        others = [w for name in self.recipe.trained if name != "projection" for w in getattr(model, name).parameters()]
        faster = rate * PROJECTION_RATE
        return [
            {"params": others, "lr": rate, "base": rate},
            {"params": list(model.projection.parameters()), "lr": faster, "base": faster},
        ]

    def steady(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, ViewModel)
        return [network for network in (model.unet, model.clip, model.volume) if network is not None]

    # Data

    def draw(self, chance: np.random.Generator, count: int, *, held_back: bool) -> Batch:
        """Photos, and for each some pictures that are asked for."""
        pool = self.held if held_back else self.own
        photos = -(-count // self.recipe.asked)
        whose = np.arange(count) % photos
        drawn = [
            self.album.read(int(number), chance, 1 + self.recipe.asked)
            for number in pool[chance.integers(0, len(pool), photos)]
        ]
        pictures = on_white(np.stack([one.rgba for one in drawn]))
        cameras = np.stack([np.concatenate([one.poses, one.squares], 1) for one in drawn])
        if self.recipe.varied and not held_back:
            pictures = vary_colours(pictures, chance)
            if chance.random() < 0.5:
                pictures, cameras = mirror(pictures, cameras)
        which = np.arange(count) // photos + 1
        stretch = np.exp(chance.normal(0, 0.1, count)).astype(np.float32)
        asked = to_channels_first(pictures[whose, which])
        photo, target = to_framing(cameras[:, 0]), to_framing(cameras[whose, which])
        if self.recipe.framed:
            asked, target, told = reframe(asked, take(photo, whose), target, torch.from_numpy(stretch))
        else:
            told = torch.stack([photo.poses[whose, 2], target.poses[:, 2]], 1)
        return {
            "photo": to_channels_first(pictures[:, 0]),
            "photo_poses": photo.poses,
            "photo_squares": photo.squares,
            "whose": torch.from_numpy(whose),
            "asked": asked,
            "poses": target.poses,
            "squares": target.squares,
            "numbers": self.tell(photo.poses[whose], target.poses, told),
        }

    def tell(self, photo: Tensor, target: Tensor, distances: Tensor) -> Tensor:  # (B, 3), (B, 3), (B, 2) -> (B, 4)
        """The numbers that the model is told of each pair."""
        kind = self.description.pose_kind
        assert kind != "unknown"
        return torch.tensor(
            [
                relative_pose(kind, Viewpoint(a[0], a[1], near), Viewpoint(b[0], b[1], far))
                for a, b, (near, far) in zip(photo.tolist(), target.tolist(), distances.tolist(), strict=True)
            ]
        )

    # What is learnt

    def see(self, model: ViewModel, batch: Batch) -> tuple[Tensor, Tensor]:  # (B, K, D), (B, C, h, w)
        """The photo's tokens and what is concatenated, for each picture asked for."""
        photo, whose = self.colours(batch["photo"]), batch["whose"]
        tokens = model.embed(photo)[whose]
        if model.volume is None:
            return tokens, model.plain_latents(photo)[whose]
        cameras = Framing(batch["photo_poses"], batch["photo_squares"])
        volume = take(model.volume(photo), whose)
        return tokens, model.see(volume, take(cameras, whose), Framing(batch["poses"], batch["squares"]))

    def colours(self, pictures: Tensor) -> Tensor:  # (B, 4, S, S) -> (B, C, S, S)
        return pictures[:, : self.description.picture_channels]

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, ViewModel)
        tokens, concat = self.see(model, batch)
        asked = self.colours(batch["asked"])
        count, device = len(asked), asked.device
        codec_noise = torch.randn(count, *concat.shape[1:], device=device)
        with torch.no_grad():
            clean = model.encode(asked, codec_noise).float()
        noise = torch.randn_like(clean)
        times = torch.randint(0, STEPS, (count,), device=device)
        noisy = model.add_noise(self.hide(model, clean, concat), noise, times)
        no_tokens, no_concat = drop(torch.rand(count, device=device))
        context = self.drop_tokens(model, tokens, batch["numbers"], no_tokens)
        concat = concat * ~no_concat[:, None, None, None]
        answer = model.answer(noisy, times, context, concat)
        wanted = noise if self.description.predicts == "noise" else clean - concat.float()
        terms: dict[str, Tensor] = {self.description.predicts: F.mse_loss(answer, wanted)}
        if self.description.predicts == "correction" and model.certain:
            terms["outline"] = OUTLINE * miss(answer + concat.float(), clean)
        return terms

    def hide(self, model: ViewModel, clean: Tensor, seen: Tensor) -> Tensor:
        """What noise is put on. Even under the most noise a picture can be made out; where the program asks, there is
        none to make out but the volume's, and that must not be taken for the truth."""
        if model.volume is None:
            return clean
        guessed = torch.rand(len(clean), device=clean.device) < GUESSED
        return torch.where(guessed[:, None, None, None], seen.to(clean), clean)

    def drop_tokens(self, model: ViewModel, tokens: Tensor, numbers: Tensor, without: Tensor) -> Tensor:
        """Context in which some photos are missing. The original keeps the pose then, although it drops it when it
        samples; ours learns what it is asked: nothing at all."""
        missing = without[:, None, None]
        if model.volume is None:
            return model.join(tokens * ~missing, numbers)
        return model.join(tokens, numbers) * ~missing

    # Looking

    def judge(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Samples, and what is concatenated, against the truth on the whole frame; with alpha also the outlines."""
        assert isinstance(model, ViewModel)
        seen, sampled = self.sample(model, batch)
        asked = self.colours(batch["asked"])
        figures = {"psnr": psnr(sampled, asked), "seen_psnr": psnr(seen, asked)}
        if asked.shape[1] == 4:
            figures |= {"iou": overlap(sampled, asked), "seen_iou": overlap(seen, asked)}
        return figures

    def show(self, model: nn.Module, batch: Batch) -> np.ndarray:
        """Rows of photos, what is concatenated, samples, and what was asked for."""
        assert isinstance(model, ViewModel)
        few = {name: part[:SHOWN] if len(part) == len(batch["whose"]) else part for name, part in batch.items()}
        seen, sampled = self.sample(model, few)
        rows = [few["photo"][few["whose"], :3], seen[:, :3], sampled[:, :3], few["asked"][:, :3]]
        tall = torch.cat([torch.cat(list(row.float()), 2) for row in rows], 1)
        pixels: np.ndarray = ((tall.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
        return pixels

    def sample(self, model: ViewModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is concatenated, as pictures, and one answer for each picture asked for, without guidance."""
        tokens, concat = self.see(model, batch)
        context = model.join(tokens, batch["numbers"])
        if model.certain:
            return concat.float(), model.mend(concat, context)
        chance = torch.Generator().manual_seed(0)

        def noise() -> Tensor:
            return torch.randn(concat.shape, generator=chance).to(model.device)

        def denoise(latents: Tensor, timestep: int) -> Tensor:
            times = torch.full((len(latents),), timestep, dtype=torch.long)
            return model.denoise(latents, times, context, concat)

        for latents in SAMPLERS["ddim"](denoise, noise(), noise, model.alphas, JUDGED_STEPS, 0.0):
            last = latents
        return self.colours(batch["photo"])[batch["whose"]].float(), model.decode(last)


def drop(chance: Tensor) -> tuple[Tensor, Tensor]:  # (B,) in [0, 1) -> bool (B,), both
    """Whose tokens are missing, and who has nothing concatenated: one, both, the other, each as often."""
    return chance < 2 * DROPPED, (chance >= DROPPED) & (chance < 3 * DROPPED)


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """Of colours, the mean over pictures, dB."""
    wrong = ((ours[:, :3] - theirs[:, :3]).clamp(-2, 2) / 2).square().mean((1, 2, 3))
    return float((-10 * wrong.clamp_min(1e-8).log10()).mean())


def miss(ours: Tensor, theirs: Tensor) -> Tensor:
    """One minus the soft overlap of what alpha covers, mean over pictures."""
    a, b = ((picture[:, 3].flatten(1) / 2 + 0.5).clamp(0, 1) for picture in (ours, theirs))
    both = (a * b).sum(1)
    return (1 - (both + 1) / ((a + b).sum(1) - both + 1)).mean()


def overlap(ours: Tensor, theirs: Tensor) -> float:
    """Mean intersection over union of what alpha covers."""
    a, b = ours[:, 3].flatten(1) > 0, theirs[:, 3].flatten(1) > 0
    return float(((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).mean())


# Framing --------------------------------------------------------------------------------------------------------------


def mirror(pictures: np.ndarray, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Everything in a mirror: pictures left to right, cameras on the other side of x = 0."""
    return pictures[..., ::-1, :].copy(), cameras * np.array([-1, 1, 1, -1, 1, 1], np.float32)


def to_channels_first(pictures: np.ndarray) -> Tensor:  # (B, S, S, 4) -> (B, 4, S, S)
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def to_framing(cameras: np.ndarray) -> Framing:  # (B, 6): pose and square
    both = torch.from_numpy(np.ascontiguousarray(cameras))
    return Framing(both[:, :3].contiguous(), both[:, 3:].contiguous())


def take(whole: Any, rows: Any) -> Any:
    """Some pictures' part of a volume or a framing."""
    return type(whole)(*(part[rows] for part in vars(whole).values()))


def reframe(
    pictures: Tensor,  # (B, 4, S, S), framed by their own outline
    photo: Framing,
    own: Framing,  # of the pictures
    stretch: Tensor,  # (B,), how much more than the photo's frame is asked for
) -> tuple[Tensor, Framing, Tensor]:
    """The pictures as the program asks for them: around the middle of the photo's frame and at its scale.

    Where a picture would have to be enlarged too much, it is asked for from further away. The distances that the model
    is told are in a world in which the photo's frame is the usual one.
    """
    zero = torch.zeros(len(pictures))
    middle = photo.to_world(zero, zero, photo.poses[:, 2])
    x, y, back = torch.einsum("bc,bkc->bk", middle, own.axes()).unbind(-1)
    depth = own.poses[:, 2] - back
    scale = photo.squares[:, 2] * photo.poses[:, 2]
    smallest = own.squares[:, 2] / LARGEST
    half = torch.maximum(stretch * scale / depth, smallest)
    wanted = Framing(own.poses, torch.stack([x / depth, y / depth, half], 1))
    told = TRAINING_DISTANCE * torch.stack([torch.ones_like(half), half * depth / scale], 1)
    return crop(pictures, own.squares, wanted.squares), wanted, told


def crop(pictures: Tensor, own: Tensor, wanted: Tensor) -> Tensor:  # (B, C, S, S), (B, 3), (B, 3)
    """Pictures of other squares of the same plane; beyond their own there is nothing but white."""
    side = pictures.shape[-1]
    across = (torch.arange(2 * side) + 0.5) / side - 1
    x = (wanted[:, :1] + wanted[:, 2:] * across - own[:, :1]) / own[:, 2:]
    y = (wanted[:, 1:2] - wanted[:, 2:] * across - own[:, 1:2]) / own[:, 2:]
    grid = torch.stack([x[:, None].expand(-1, 2 * side, -1), -y[:, :, None].expand(-1, -1, 2 * side)], -1)
    nothing = torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None, None]
    fine = F.grid_sample(pictures - nothing, grid, "bicubic", "zeros", align_corners=False)
    return (F.avg_pool2d(fine, 2) + nothing).clamp(-1, 1)


# What is trained ------------------------------------------------------------------------------------------------------

POCKET_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 32,
    "out_channels": 16,
    "block_out_channels": (48, 80, 112),  # with the volume net, half precision and the cutter: under 30 MB
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # the number of heads
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 16,
}
POCKET_CLIP: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 128,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
CPU = Backend("cpu", "float32", "CPU")


def read_header(path: Path) -> dict[str, Any]:
    """What a weights file of ours says of itself."""
    with open_tensors(path) as file:
        try:
            head: dict[str, Any] = json.loads(file.metadata[HEAD])
            return head
        except (KeyError, ValueError):
            raise WeightsError("it does not say what it is", where=str(path), remedy="train it again") from None


def describe_pocket(path: Path, _: int) -> Description:
    """A denoiser on top of a volume net's weights; or the one that a file holds already."""
    head = read_header(path)
    if head.get("kind") != "volume":
        return describe_written(path)
    volume = {key: checkpoints.as_tuple(value) for key, value in head["description"].items()}
    return describe_small(volume["size"], volume)


def describe_alone(path: Path, size: int) -> Description:
    """The embedded denoiser without a volume; or the one that a file holds already."""
    return describe_written(path) if path.is_file() else describe_small(size, None)


def describe_written(path: Path) -> Description:
    with open_tensors(path) as file:
        return checkpoints.read_header(file, path)


def describe_small(size: int, volume: dict[str, Any] | None) -> Description:
    return Description(
        "pocket",
        "original",
        POCKET_UNET,
        POCKET_CLIP | {"image_size": size},
        None,
        size=size,
        tokens="patches",
        predicts="correction",
        volume=volume,
        patch=2,
    )


def build_alone(path: Path, description: Description) -> ViewModel:
    """Before it has learnt anything it takes what it is shown to be right."""
    model = ViewModel(description)
    for weights in (model.unet.conv_out.weight, model.unet.conv_out.bias):
        nn.init.zeros_(weights)
    return model


def build_pocket(path: Path, description: Description) -> ViewModel:
    model = build_alone(path, description)
    assert model.volume is not None
    if read_header(path).get("kind") == "volume":
        with open_tensors(path) as file:
            weights = {name: file.read(name).float() for name in file.infos}
        try:
            model.volume.load_state_dict(weights)
        except RuntimeError as error:
            raise WeightsError(
                "its tensors are not those that it describes", where=str(path), remedy="train it again"
            ) from error
    return model


def build_zero123(path: Path, description: Description) -> ViewModel:
    model = checkpoints.load_to_train(path, CPU, description.size)
    model.unet.enable_gradient_checkpointing()  # else each picture of 256 px keeps 15 times as much for the way back
    return model


RECIPES = {
    "pocket-views": Recipe(
        describe_pocket, build_pocket, ("unet", "clip", "projection"), asked=4, varied=True, framed=True
    ),
    "pocket-alone": Recipe(
        describe_alone, build_alone, ("unet", "clip", "projection"), asked=4, varied=True, framed=True, based=False
    ),
    "zero123": Recipe(
        checkpoints.describe_to_train,
        build_zero123,
        ("unet", "projection"),
        asked=1,
        varied=False,
        framed=False,
        raw=("projection",),
    ),
}
