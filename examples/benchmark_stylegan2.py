"""Time and peak memory of StyleGAN2 passes, held against the way the public fallbacks compute them.

``python examples/benchmark_stylegan2.py [--sizes 256 512 1024] [--device cuda] [--runs 5]``

The yardstick is ours: per-sample weights in a grouped convolution, and the resampling filter on
zero-padded maps, either one convolution with a group for each channel or every channel as a picture
of its own. Those are the two ways in which public implementations do without their CUDA kernels.
Both draw the same network with the same (random) weights, and take turns, so that a machine that
slows down slows them all; medians are printed. With ``--processor-time`` the seconds are those that
this process computed, over all threads, which other work on the machine hardly moves. Each peak is
that of a fresh process that makes the network and one pass.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from faceedit.models.stylegan2 import ImageHead, StyledConv, StyleGAN2

Filter = Callable[[Tensor, int, tuple[int, int]], Tensor]
WAYS = {
    "ours": ("float32", "ours"),
    "bfloat16": ("bfloat16", "ours"),
    "grouped": ("float32", "grouped"),
    "single": ("float32", "single"),
}
"""Name in the table to type and implementation."""


def _resampled(x: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels and around them."""
    batch, channels, height, width = x.shape
    x = F.pad(x.reshape(batch, channels, height, 1, width, 1), [0, up - 1, 0, 0, 0, up - 1])
    return F.pad(x.reshape(batch, channels, height * up, width * up), [*pad, *pad])


def _taps(x: Tensor) -> Tensor:
    line = x.new_tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(line, line) / 16


def grouped_filter(x: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """The filter as one convolution with a group for each channel."""
    x = _resampled(x, up, pad)
    return F.conv2d(x, _taps(x).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


def single_filter(x: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """The filter on every channel as a picture of its own."""
    x = _resampled(x, up, pad)
    batch, channels = x.shape[:2]
    x = F.conv2d(x.reshape(batch * channels, 1, *x.shape[2:]), _taps(x)[None, None])
    return x.reshape(batch, channels, *x.shape[2:])


def naive_conv(module: StyledConv | ImageHead, x: Tensor, w: Tensor, blur: Filter) -> Tensor:
    """A modulated convolution with weights of its own for every sample."""
    batch, n_in, height, width = x.shape
    weight = module.weight * module.style(w)[:, None, :, None, None]
    if isinstance(module, StyledConv):
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, batch * n_in, height, width)
    if getattr(module, "up", False):
        kernel = weight.transpose(1, 2).reshape(batch * n_in, -1, 3, 3)
        x = F.conv_transpose2d(x, kernel, stride=2, groups=batch)
        x = blur(x.reshape(batch, -1, *x.shape[2:]), 1, (1, 1))
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=batch)
    x = x.reshape(batch, -1, *x.shape[2:])
    if isinstance(module, ImageHead):
        return x + module.bias[:, None, None]
    x = x + module.noise_strength * module.noise
    return F.leaky_relu(x + module.bias[:, None, None], 0.2) * 2**0.5


def naive(generator: StyleGAN2, latents: Tensor, blur: Filter) -> Tensor:
    """The same picture as ``generator(latents)``, the slow way."""
    x = generator.constant.repeat(len(latents), 1, 1, 1)
    convs = [generator.first, *(conv for level in generator.levels for conv in (level.conv1, level.conv2))]
    image = None
    for row, conv in enumerate(convs):
        x = naive_conv(conv, x, latents[:, row], blur)
        if row % 2 == 0:
            rgb = naive_conv(generator.heads[row // 2], x, latents[:, row + 1], blur)
            image = rgb if image is None else blur(image, 2, (2, 1)) + rgb
    return image


def network(size: int, device: str, dtype: torch.dtype, way: str) -> tuple[StyleGAN2, Tensor]:
    """Random weights, as training starts from, with noise; and one code."""
    torch.manual_seed(0)
    generator = StyleGAN2(size).eval()
    for module in generator.modules():
        if isinstance(module, StyledConv):
            module.noise_strength.fill_(0.1)
    # Ours as the editor keeps it; the fallbacks leave the memory order as it comes.
    order = torch.channels_last if way == "ours" else torch.contiguous_format
    generator = generator.to(device, dtype, memory_format=order)
    return generator, generator.sample(1, seed=0)


def drawing(size: int, device: str, dtype: torch.dtype, way: str) -> Callable[[], Tensor]:
    """One pass: "ours", or the yardstick with a filter of either kind."""
    generator, code = network(size, device, dtype, way)
    if way == "ours":
        return lambda: generator(code)
    return lambda: naive(generator, code, grouped_filter if way == "grouped" else single_filter)


def peak(size: int, device: str, dtype: str, way: str) -> None:
    """Print the peak gigabytes of this process, or of its GPU, for one pass."""
    draw = drawing(size, device, getattr(torch, dtype), way)
    with torch.inference_mode():
        draw()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e9)
    else:
        unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def peak_of(size: int, device: str, dtype: str, way: str) -> float:
    """Peak gigabytes of a fresh process that makes one pass."""
    command = [sys.executable, __file__, "--peak", str(size), device, dtype, way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def timed(
    functions: list[Callable[[], Tensor]], runs: int, device: str, clock: Callable[[], float]
) -> list[float]:
    """Median seconds of each function, called in turn after one warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for run in range(runs + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = clock()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if run:
                taken.append(clock() - start)
    return [statistics.median(taken) for taken in seconds]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time the compiled generator too")
    parser.add_argument("--processor-time", action="store_true", help="for a machine that is busy with other work")
    parser.add_argument("--peak", nargs=4, metavar=("SIZE", "DEVICE", "DTYPE", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        size, *rest = args.peak
        peak(int(size), *rest)
        return

    clock = time.process_time if args.processor_time else time.perf_counter
    # First, while this process is small: Linux lets a child begin with its parent's peak.
    peaks = {(size, *way): peak_of(size, args.device, *way) for size in args.sizes for way in WAYS.values()}
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {where}, batch 1; seconds, and how many times ours")
    for size in args.sizes:
        generator, code = network(size, args.device, torch.float32, "ours")
        passes = {name: drawing(size, args.device, getattr(torch, dtype), way) for name, (dtype, way) in WAYS.items()}
        if args.compile:
            compiled = torch.compile(generator)
            passes["compiled"] = lambda compiled=compiled, code=code: compiled(code)
        if size > 256:
            passes["preview"] = lambda generator=generator, code=code: generator.preview(code)
        with torch.inference_mode():
            image, reference = passes["ours"](), passes["grouped"]()
            difference = (image - reference).abs().max() / reference.abs().max()
            seconds = dict(zip(passes, timed(list(passes.values()), args.runs, args.device, clock), strict=True))
        print(f"\n{size} px; ours and the yardstick differ by {difference:.1e} of the largest value")
        for name, taken in seconds.items():
            memory = f"   peak {peaks[size, *WAYS[name]]:.2f} GB" if name in WAYS else ""
            print(f"{name:<10} {taken:8.3f} s {taken / seconds['ours']:6.2f} x{memory}", flush=True)


if __name__ == "__main__":
    main()
