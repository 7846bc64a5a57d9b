"""Figures from papers, each with where it stands and how it was measured: another protocol is another number.

From the reference sheet's section 8. CD is not comparable between papers: normalisation, points, alignment and whether
it is squared all differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    model: str
    figures: dict[str, float]  # by our names of the metrics
    protocol: str
    source: str


PAPER_SHAPE = "P: unit cube, 2,000 points, 64^3; GSO, number of objects not stated"
PAPER_VIEWS = "random poses, the first is the input; GSO, number of objects not stated"
SYNC_SHAPE = "S: half CD, 64^3, only the truth normalised, visible points; 30 GSO objects"
SYNC_VIEWS = "SyncDreamer's views; 30 GSO objects"
SV3D_SHAPE = "SV3D's own; GSO"
SV3D_VIEWS = "SV3D's static orbits; GSO"
PLUS_VIEWS = "One-2-3-45++'s views; 1,030 GSO objects"
ZERO123, SYNC = "arXiv 2303.11328, tables 1-4", "arXiv 2309.03453, 2310.15008"
SV3D, ESCHER, PLUS = "arXiv 2403.12008", "arXiv 2402.03908", "arXiv 2311.07885"

SHAPES = (
    Published("Zero-1-to-3", {"iou": 0.5052, "cd": 0.0717}, PAPER_SHAPE, ZERO123),
    Published("Point-E", {"iou": 0.2944, "cd": 0.0804}, PAPER_SHAPE, ZERO123),
    Published("MCC", {"iou": 0.2343, "cd": 0.1230}, PAPER_SHAPE, ZERO123),
    Published("SJC-I", {"iou": 0.1332, "cd": 0.2245}, PAPER_SHAPE, ZERO123),
    Published("RealFusion", {"iou": 0.2741, "cd_s": 0.0819}, SYNC_SHAPE, SYNC),
    Published("Magic123", {"iou": 0.4528, "cd_s": 0.0516}, SYNC_SHAPE, SYNC),
    Published("One-2-3-45", {"iou": 0.4086, "cd_s": 0.0629}, SYNC_SHAPE, SYNC),
    Published("Point-E", {"iou": 0.2875, "cd_s": 0.0426}, SYNC_SHAPE, SYNC),
    Published("Shap-E", {"iou": 0.3584, "cd_s": 0.0436}, SYNC_SHAPE, SYNC),
    Published("Zero123", {"iou": 0.5035, "cd_s": 0.0339}, SYNC_SHAPE, SYNC),
    Published("SyncDreamer", {"iou": 0.5421, "cd_s": 0.0261}, SYNC_SHAPE, SYNC),
    Published("Wonder3D", {"iou": 0.6244, "cd_s": 0.0199}, SYNC_SHAPE, SYNC),
    Published("Stable Zero123", {"iou": 0.550, "cd": 0.039}, SV3D_SHAPE, SV3D),
    Published("SV3D-p", {"iou": 0.614, "cd": 0.024}, SV3D_SHAPE, SV3D),
    Published("true renders", {"iou": 0.689, "cd": 0.021}, SV3D_SHAPE, SV3D),
)

VIEWS = (
    Published("Zero-1-to-3", {"psnr": 18.378, "ssim": 0.877, "lpips": 0.088}, PAPER_VIEWS, ZERO123),
    Published("DietNeRF", {"psnr": 8.933, "ssim": 0.645, "lpips": 0.412}, PAPER_VIEWS, ZERO123),
    Published("SJC-I", {"psnr": 6.573, "ssim": 0.552, "lpips": 0.484}, PAPER_VIEWS, ZERO123),
    Published("Image Variations", {"psnr": 5.914, "ssim": 0.540, "lpips": 0.545}, PAPER_VIEWS, ZERO123),
    Published("Zero123", {"psnr": 18.93, "ssim": 0.779, "lpips": 0.166}, SYNC_VIEWS, SYNC),
    Published("SyncDreamer", {"psnr": 20.05, "ssim": 0.798, "lpips": 0.146}, SYNC_VIEWS, SYNC),
    Published("Wonder3D", {"psnr": 26.07, "ssim": 0.924, "lpips": 0.065}, SYNC_VIEWS, SYNC),
    Published("Zero123", {"psnr": 17.29, "ssim": 0.79, "lpips": 0.13}, SV3D_VIEWS, SV3D),
    Published("Zero123-XL", {"psnr": 17.11, "ssim": 0.78, "lpips": 0.14}, SV3D_VIEWS, SV3D),
    Published("Stable Zero123", {"psnr": 18.34, "ssim": 0.78, "lpips": 0.13}, SV3D_VIEWS, SV3D),
    Published("SV3D-p", {"psnr": 21.26, "ssim": 0.88, "lpips": 0.08}, SV3D_VIEWS, SV3D),
    Published("Zero123", {"psnr": 18.51, "ssim": 0.856, "lpips": 0.127}, "GSO-30", ESCHER),
    Published("Zero123-XL", {"psnr": 18.93, "ssim": 0.856, "lpips": 0.124}, "GSO-30", ESCHER),
    Published("Zero123", {"psnr": 20.32, "lpips": 0.110, "mask_iou": 0.856}, PLUS_VIEWS, PLUS),
    Published("Zero123-XL", {"psnr": 20.11, "lpips": 0.113, "mask_iou": 0.869}, PLUS_VIEWS, PLUS),
    Published("One-2-3-45++", {"psnr": 22.12, "lpips": 0.110, "mask_iou": 0.878}, PLUS_VIEWS, PLUS),
)
