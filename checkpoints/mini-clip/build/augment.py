"""Fresh views of a batch of drawings: geometry, colour, the shading of a solid body, background, blur, noise, holes.

Everything works on whole batches in torch, (b, c, s, s) floats in [0, 1], so that views need not be stored. The shading
stands in for styles with light and volume, which are never shown in training.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OUT = 64
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def uniform(n: int, low: float, high: float) -> Tensor:
    """(n, 1, 1, 1) random numbers."""
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def chance(n: int, p: float) -> Tensor:
    """(n, 1, 1, 1) zeros and ones, one with probability p."""
    return (torch.rand(n, 1, 1, 1) < p).float()


def warp(images: Tensor, may_flip: Tensor) -> Tensor:
    """Rotate, scale, shear, shift, tilt and, where allowed, mirror; (b, 4, s, s) to (b, 4, OUT, OUT)."""
    b = len(images)
    angle = torch.randn(b) * math.radians(9)
    zoom = torch.empty(b).uniform_(0.92, 1.4)  # of the grid: above one, the drawing becomes smaller
    stretch = torch.empty(b).uniform_(0.88, 1.13)
    mirror = torch.where(may_flip & (torch.rand(b) < 0.5), -1.0, 1.0)
    shear = torch.randn(b) * 0.06
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack([cos * stretch * mirror, shear - sin, sin * mirror, cos / stretch], 1).view(b, 2, 2)
    axis = torch.linspace(-1 + 1 / OUT, 1 - 1 / OUT, OUT)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, OUT * OUT, 2)
    tilt = 1 + (torch.randn(b, 1, 2) * 0.06 * grid).sum(-1, keepdim=True)
    shift = (torch.rand(b, 1, 2) - 0.5) * 2 * (0.06 + 0.5 * (zoom - 1).clamp_min(0))[:, None, None]
    grid = ((grid / tilt) @ matrix.mT + shift).view(b, OUT, OUT, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of a whole batch with one width."""
    radius = max(1, round(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, [radius] * 4, mode="replicate"), kernel, groups=x.shape[1])
    return F.conv2d(x, kernel.mT, groups=x.shape[1])


def colour(rgb: Tensor) -> Tensor:
    """Random hue, saturation, contrast, brightness and gamma."""
    b = len(rgb)
    grey = (rgb * LUMA).sum(1, keepdim=True)
    turn = torch.randn(b) * 0.25 * (torch.rand(b) < 0.7)
    cos, sin = turn.cos().view(b, 1, 1, 1), turn.sin().view(b, 1, 1, 1)
    chroma = rgb - grey
    # A turn of the chroma plane about the grey axis (Rodrigues), close enough to a change of hue.
    cross = (chroma.roll(1, 1) - chroma.roll(2, 1)) / math.sqrt(3)
    rgb = grey + (chroma * cos + cross * sin) * uniform(b, 0.6, 1.5)
    rgb = (rgb - 0.5) * uniform(b, 0.75, 1.25) + 0.5 + uniform(b, -0.12, 0.12)
    return rgb.clamp(0.001, 1) ** torch.exp(uniform(b, -0.3, 0.3))


def shade(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Light a relief made of the silhouette and the luminance: diffuse light, a highlight, and a soft gradient."""
    b = len(rgb)
    luma = (rgb * LUMA).sum(1, keepdim=True)
    wide, narrow = float(torch.empty(1).uniform_(2.5, 7)), float(torch.empty(1).uniform_(0.8, 2.2))
    # A wide blur loses nothing at half the resolution.
    body = F.interpolate(blurred(F.avg_pool2d(alpha, 2), wide / 2), scale_factor=2, mode="bilinear")
    height = body * uniform(b, 2, 14) + blurred(luma * alpha, narrow) * uniform(b, -1.5, 3)
    padded = F.pad(height, [1, 1, 1, 1], mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    length = (dx**2 + dy**2 + 1).sqrt()
    # Light mostly from above: image rows grow downwards.
    lx, ly = uniform(b, -0.8, 0.8), uniform(b, -1.0, 0.3)
    lz = uniform(b, 0.5, 1.2)
    norm = (lx**2 + ly**2 + lz**2).sqrt()
    lambert = ((-dx * lx - dy * ly + lz) / (length * norm)).clamp_min(0)
    strength = uniform(b, 0.2, 0.9)
    lit = rgb * (1 - strength + strength * lambert / (lz / norm).clamp_min(0.4))
    gloss = uniform(b, 0, 0.5) * lambert ** uniform(b, 6, 30) * chance(b, 0.6)
    waves = F.interpolate(torch.randn(b, 3, 3, 3) * 0.12, size=OUT, mode="bicubic", align_corners=True)
    tinted = lit * (1 + waves * chance(b, 0.5)) + gloss
    return torch.lerp(rgb, tinted.clamp(0, 1), chance(b, 0.65))


def background(b: int) -> Tensor:
    """White for half of the batch, else one colour or a gradient; (b, 3, OUT, OUT)."""
    corners = torch.rand(b, 3, 2, 2)
    flat = corners.mean((2, 3), keepdim=True)
    scene = F.interpolate(torch.where(chance(b, 0.5) > 0, corners, flat.expand_as(corners)), size=OUT, mode="bilinear")
    return torch.lerp(scene, torch.ones(1), chance(b, 0.5))


def soften(x: Tensor) -> Tensor:
    """Blur a quarter of the batch, sharpen the next one (stronger outlines), leave the rest."""
    quarter = len(x) // 4
    soft = blurred(x[:quarter], float(torch.empty(1).uniform_(0.4, 1.1)))
    middle = x[quarter : 2 * quarter]
    crisp = middle + (middle - blurred(middle, 1.0)) * uniform(quarter, 0.2, 1.0)
    return torch.cat([soft, crisp, x[2 * quarter :]])


def erase(x: Tensor, p: float = 0.25) -> Tensor:
    """Cover a random rectangle with one colour in a share p of the batch."""
    b = len(x)
    axis = torch.arange(OUT).view(1, OUT)
    inside = []
    for _ in range(2):
        start, size = torch.randint(0, OUT - 8, (b, 1)), torch.randint(8, 28, (b, 1))
        inside.append((axis >= start) & (axis < start + size))
    box = (inside[0][:, :, None] & inside[1][:, None, :])[:, None] & (chance(b, p) > 0)
    return torch.where(box, torch.rand(b, 3, 1, 1), x)


def views(images: Tensor, may_flip: Tensor) -> Tensor:
    """uint8 RGBA (b, 4, s, s) with premultiplied colour, and where mirroring does no harm (b,), to (b, 3, OUT, OUT)."""
    warped = warp(images.float() / 255, may_flip)
    alpha = warped[:, 3:].clamp(0, 1)
    rgb = (warped[:, :3] / alpha.clamp_min(0.02)).clamp(0, 1)
    rgb = shade(colour(rgb), alpha)
    x = soften(torch.lerp(background(len(rgb)), rgb, alpha))
    x = x + torch.randn_like(x) * uniform(len(x), 0, 0.05) * chance(len(x), 0.3)
    return erase(x.clamp(0, 1))
