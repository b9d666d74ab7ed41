"""What the bundled pair makes of the bundled pictures on different processors, with the same seed.

``python -m tests.scale.processors --save_path FOLDER`` lets oneDNN, which computes MindSpore's matrix products and
convolutions, use AVX2 only and then AVX-512, and counts the tokens and levels that differ.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import ROOT

INSTRUCTIONS = ('AVX2', 'AVX512_CORE')
VARIABLES = ('DNNL_MAX_CPU_ISA', 'ONEDNN_MAX_CPU_ISA')  # MindSpore 2.8's oneDNN knows the first, later ones the second


def run(instructions: str, script: str, *argv: object) -> None:
    subprocess.run([sys.executable, str(ROOT / script), '--device_target', 'CPU', *map(str, argv)], check=True,
                   env={**os.environ, **dict.fromkeys(VARIABLES, instructions)}, stdout=subprocess.DEVNULL)


def stage_1(instructions: str, folder: Path, argv: list[str]) -> Path:
    run(instructions, 'Transformer/infer.py', '--ckpt_path', ROOT / 'ckpts_ICT/demo/Transformer.ckpt', '--image_url',
        ROOT / 'images/samples', '--mask_url', ROOT / 'mask/testing_mask_dataset', '--save_url', folder, *argv)
    return folder


def stage_2(instructions: str, folder: Path, priors: Path, samples: int) -> Path:
    run(instructions, 'Guided_Upsample/infer.py', '--ckpt_path', ROOT / 'ckpts_ICT/demo', '--input',
        ROOT / 'images/samples', '--mask', ROOT / 'mask/testing_mask_dataset', '--prior', priors, '--save_path', folder,
        '--condition_num', samples)
    return folder


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)).astype(int)
            for path in sorted(folder.rglob('*.png'))}


def compare(what: str, unit: str, one: Path, two: Path, whole_pixels: bool) -> None:
    """Print how many pixels (of priors: tokens) or values differ between the PNGs of two folders, and how much."""
    first, second = pictures(one), pictures(two)
    assert first.keys() == second.keys() and first
    differing = total = largest = files = 0
    for name, values in first.items():
        difference = np.abs(values - second[name])
        changed = difference.any(-1) if whole_pixels else difference > 0
        differing, total, files = differing + int(changed.sum()), total + changed.size, files + bool(changed.any())
        largest = max(largest, int(difference.max()))
    print(f'{what}: {differing} of {total} {unit} differ ({100 * differing / total:.3g} %), by at most {largest} '
          f'levels, in {files} of {len(first)} files')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--save_path', type=Path, required=True, help='an empty or new folder')
    parser.add_argument('--condition_num', type=int, default=3, help='samples a picture')
    parser.add_argument('--sample_steps', type=int, default=16, help='0: a token a step, as published')
    args = parser.parse_args()
    sampling = ['--condition_num', str(args.condition_num), '--sample_steps', str(args.sample_steps)]
    priors = [stage_1(name, args.save_path / name / 'priors', sampling) for name in INSTRUCTIONS]
    same_priors = [stage_2(name, args.save_path / name / 'same_priors', priors[0], args.condition_num)
                   for name in INSTRUCTIONS]
    own_priors = stage_2(INSTRUCTIONS[1], args.save_path / INSTRUCTIONS[1] / 'own_priors', priors[1],
                         args.condition_num)
    print(f'{" against ".join(INSTRUCTIONS)}, {args.condition_num} samples, {args.sample_steps} steps')
    compare('stage 1', 'tokens', *priors, True)
    compare('stage 2 from the same priors', 'values', *same_priors, False)
    compare('both stages', 'values', same_priors[0], own_priors, False)


if __name__ == '__main__':
    main()
