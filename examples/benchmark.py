"""Time faceedit on this machine; every comparison is a ratio measured side by side in one run.

``python examples/benchmark.py [--wheel random_face-2021.7.21.1-py3-none-any.whl] [--compile]``

With the wheel and the ``openvino`` extra the generator is held against the OpenVINO runtime. The
two take turns, so that a machine that slows down slows both; medians are printed.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

PHOTO = Path(__file__).resolve().parent / "astronaut.png"


def timed(*functions: Callable[[], object], runs: int) -> list[float]:
    """Median seconds of each function, called in turn after one warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for run in range(runs + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if run:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def import_time() -> float:
    """Median seconds that ``import faceedit`` adds to a fresh interpreter."""

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    bare, full = timed(run("pass"), run("import faceedit"), runs=7)
    return full - bare


def peak_memory() -> float:
    """Peak resident gigabytes of a fresh process that loads the editor and makes one edit."""
    code = (
        "import resource; from faceedit import FaceEditor\n"
        f"FaceEditor.from_pretrained().edit({str(PHOTO)!r}, smile=1.0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return int(out.stdout) / unit


def openvino(wheel: Path, threads: int) -> Callable[[object], object]:
    """The wheel's synthesis network, compiled for the CPU in float32."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        for suffix in ("xml", "bin"):
            archive.extract(f"random_face/data/SynthesisNetwork.{suffix}", folder)
        path = Path(folder) / "random_face/data/SynthesisNetwork.xml"
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        return ov.Core().compile_model(str(path), "CPU", options)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="the random-face wheel, to compare with OpenVINO")
    parser.add_argument("--compile", action="store_true", help="time the compiled generator too")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    print(f"import faceedit: {import_time():.3f} s more than an empty interpreter")
    print(f"peak memory of loading and one edit: {peak_memory():.2f} GB")

    import torch

    from faceedit import FaceEditor

    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, float32, 1024 px unless said")
    editor = FaceEditor.from_pretrained()
    generator = editor._generator
    code = generator.sample(1, seed=0)

    with torch.inference_mode():
        passes: dict[str, Callable[[], object]] = {"generator pass": lambda: generator(code)}
        passes["preview, 256 px"] = lambda: generator.preview(code)
        crop = generator(code).clamp(-1, 1)
        passes["encoder, first answer"] = lambda: editor._encoder(crop)
        if args.compile:
            compiled = torch.compile(generator, fullgraph=True)
            passes["generator pass, compiled"] = lambda: compiled(code)
        if args.wheel:
            network = openvino(args.wheel, threads)
            style = code[:, 0].numpy()
            passes["OpenVINO, the same network"] = lambda: network(style)
        inversion = editor.invert(PHOTO)
        if editor.fusion is not None:
            maps = [level[None] for level in inversion.features]
            passes["fused pass"] = lambda: editor.fusion(maps, code, [{"smile": 1.0}])
        passes["slider move: edit of an inversion"] = lambda: editor.edit(inversion, smile=1.0)
        passes["invert a photograph"] = lambda: editor.invert(PHOTO)
        seconds = dict(zip(passes, timed(*passes.values(), runs=args.runs), strict=True))
    unit = seconds.get("OpenVINO, the same network", seconds["generator pass"])
    name = "OpenVINO" if args.wheel else "a generator pass"
    for what, taken in seconds.items():
        print(f"{what:<36} {taken:7.3f} s   {taken / unit:5.2f} x {name}")


if __name__ == "__main__":
    main()
