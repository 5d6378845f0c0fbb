"""What `evaluate` reads: a folder of aligned photographs, and random networks that judge."""

import csv
from pathlib import Path

import torch
from PIL import Image
from tiny_editor import photo

from faceedit.train.checkpoint import save_tensors
from faceedit.train.classifier import AttributeClassifier
from faceedit.train.identity import DlibFaceNet
from faceedit.train.perceptual import LPIPS

OUTPUTS = ("Smiling", "Young", "Male", "Eyeglasses", "No_Beard")


def write_photos(folder: Path, n: int) -> Path:
    """Aligned pictures and their index."""
    folder.mkdir()
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "face_box", "already_cropped"])
        for i in range(n):
            Image.fromarray(photo(96, 96, seed=i)).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", "", "1"])
    return folder


def write_networks(folder: Path) -> list[str]:
    """Random judge, identity network and LPIPS, as command-line options."""
    torch.manual_seed(0)
    judge = AttributeClassifier(OUTPUTS).eval()
    torch.nn.init.normal_(judge.head.weight, std=5.0)
    for module in judge.trunk.modules():  # random norms in evaluation mode would let the signal fade
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(1.5)
    judge.save(folder / "judge.safetensors", auc={}, recipe={"half": "B", "seed": 7})
    identity = DlibFaceNet()
    save_tensors(identity.state_dict(), folder / "identity.safetensors")
    state = {f"{k}.weight" if k.startswith("lin") else k: v for k, v in LPIPS().state_dict().items()}
    save_tensors({k: torch.rand_like(v) * 0.02 for k, v in state.items()}, folder / "lpips.safetensors")
    return [f"--{name}={folder / f'{name}.safetensors'}" for name in ("judge", "identity", "lpips")]
