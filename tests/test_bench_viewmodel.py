"""The view model at the published size with random weights: `make bench` prints times beside plain diffusers'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel

from zero123cli import machine
from zero123cli.cameras import Viewpoint
from zero123cli.diffusion import viewmodel
from zero123cli.diffusion.checkpoints import DTYPES

pytestmark = pytest.mark.bench

UNET = {
    "sample_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 256,
}
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}


def random_model(backend: machine.Backend) -> viewmodel.ViewModel:
    """The published size, its weights small random numbers, as `load` leaves a model."""
    with torch.device("meta"):
        model = viewmodel.ViewModel(viewmodel.Description("bench", "original", UNET, CLIP, VAE))
    torch.manual_seed(0)
    weights = {}
    for name, slot in model.state_dict().items():
        tensor = (torch.randn(slot.shape) * 0.02).to(backend.device, DTYPES[backend.dtype])
        weights[name] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    model.load_state_dict(weights, assign=True)
    places = model.clip.vision_model.embeddings
    places.position_ids = torch.arange(places.num_positions, device=backend.device)[None]
    return model.eval().requires_grad_(False)


def seconds(work: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def test_a_guided_pass_is_not_slower_than_plain_diffusers() -> None:
    """Both in turn, same dtype, batch and memory format; medians of the ratio pair by pair."""
    backend = machine.pick()
    model = random_model(backend)
    dtype = DTYPES[backend.dtype]
    plain = UNet2DConditionModel.from_config(model.unet.config).to(backend.device, dtype).eval()
    plain.load_state_dict(model.unet.state_dict())
    plain.to(memory_format=torch.channels_last)
    photo, pose = Viewpoint(), Viewpoint(90.0)
    seen = viewmodel.Condition(
        torch.randn(1, 768, device=backend.device, dtype=dtype),
        torch.randn(4, 32, 32, device=backend.device, dtype=dtype),
        photo,
    )
    noisy = torch.randn(1, 4, 32, 32, device=backend.device)
    times = torch.full((1,), 500)
    pair = torch.randn(2, 8, 32, 32, device=backend.device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    context = torch.randn(2, 1, 768, device=backend.device, dtype=dtype)
    both = torch.full((2,), 500, device=backend.device)

    def ours() -> object:
        return model.predict(seen, noisy, times, [pose], 3.0)

    def theirs() -> object:
        return plain(pair, both, context, return_dict=False)[0]

    rounds = 20 if backend.device.startswith("cuda") else 5
    unfolded = [seconds(ours, backend.device) for _ in range(2)][-1:]
    before = model.predict(seen, noisy, times, [pose], 3.0)
    assert viewmodel.fold_cross_attention(model) == 16
    after = model.predict(seen, noisy, times, [pose], 3.0)
    rows = []
    for _ in range(rounds + 1):
        rows.append((seconds(ours, backend.device), seconds(theirs, backend.device)))
    rows = rows[1:]
    mine, plains = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(a / b for a, b in rows)
    print(
        f"\n{backend.name}, {backend.dtype}, guided pair at 256 px: ours {mine:.3f} s, plain diffusers {plains:.3f} s"
    )
    print(f"ratio ours / plain {ratio:.3f}; before the fold {unfolded[0]:.3f} s; 50 steps of a view {50 * mine:.0f} s")
    print(f"the fold changes the prediction by {float((after - before).abs().max() / before.abs().max()):.1e}")
    if backend.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        four = [Viewpoint(90.0 * k) for k in range(4)]
        model.predict(seen, noisy.expand(4, -1, -1, -1), times.expand(4), four, 3.0)
        model.decode(noisy.expand(4, -1, -1, -1))
        print(f"peak GPU memory, 4 samples: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    assert ratio < 1.1  # noise allowed; the figure itself is what counts
