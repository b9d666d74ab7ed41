"""Fit a palette: ``python -m ict.palette --data_path FOLDER`` (paper, section 3.1).

Pictures are described by the index of the nearest of 512 colours, found by k-means over the pixels of
training pictures.
"""
from __future__ import annotations

import io
import os
import sys

import numpy as np
from tqdm import tqdm

from ict import files, options
from ict.command import run
from ict.data import codebook, geometry, images, pairs
from ict.errors import UserError, require
from ict.log import log
from ict.options import positive

N_COLOURS = 512


def fit(pixels: np.ndarray, n_colours: int, seed: int, iterations: int = 100) -> np.ndarray:
    """k-means centres (n_colours, 3) float32 in [-1, 1] of uint8 pixels (N, 3), by OpenCV, k-means++ start."""
    import cv2
    cv2.setRNGSeed(seed)
    data = pixels.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, iterations, 1e-4)
    _, _, centres = cv2.kmeans(  # type: ignore[call-overload]  # the stub demands labels to start from
        data, n_colours, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    return centres[np.lexsort(centres.T[::-1])].clip(-1.0, 1.0).astype(np.float32)


def main(argv: list[str]) -> int:
    parser = options.Parser(prog='python -m ict.palette', description='Fit a colour palette to images.')
    parser.add_argument('--data_path', required=True, help='folder (searched recursively), image, or list of paths')
    parser.add_argument('--save_path', default='./kmeans_centers.npy', help='palette to write')
    parser.add_argument('--colours', type=int, default=N_COLOURS, help='size of the palette')
    parser.add_argument('--prior_size', type=int, default=32, help='pictures are shrunk to this first')
    parser.add_argument('--max_pixels', type=int, default=1_000_000,
                        help='at most this many pixels, drawn at random')
    parser.add_argument('--seed', type=int, default=0, help='of the drawn pixels and first centres')
    options.add_flag(parser, '--overwrite', 'replace a palette that is there already')
    args = parser.parse_args(argv)
    positive(args, 'prior_size', 'max_pixels')
    require(0 <= args.seed < 2 ** 31, f'--seed {args.seed}: must be at least 0 and below 2147483648')
    if not 2 <= args.colours <= 32767:
        raise UserError(f'--colours {args.colours}: a palette has 2 to 32767 colours')
    target = files.output_file(args.save_path, '--save_path')
    require(args.overwrite or not os.path.exists(target),
            f'--save_path {target}: is there already, and checkpoints may need it; name another, or use --overwrite')
    found = pairs.listing(args.data_path, '--data_path', unique=False)
    rng = np.random.default_rng(args.seed)
    wanted = max(1, -(-args.max_pixels // args.prior_size ** 2))
    chosen = np.sort(rng.permutation(len(found))[:wanted])
    pixels, failed = [], []
    for i in tqdm(chosen, desc='reading', unit='image', disable=None):
        try:
            picture = images.load_rgb(found.path(i))
            side = geometry.centre_square(*geometry.size_of(picture))
            pixels.append(images.shrink(geometry.cut(picture, side), args.prior_size).reshape(-1, 3))
        except UserError as error:
            failed.append(str(error))
    for line in failed:
        log('skipped ' + line)
    if not pixels:
        raise UserError(f'--data_path {args.data_path}: none of {len(chosen)} images could be read')
    pixels = np.concatenate(pixels)
    if len(pixels) > args.max_pixels:
        pixels = pixels[np.sort(rng.permutation(len(pixels))[:args.max_pixels])]
    different = len(np.unique(pixels, axis=0))
    if different < args.colours:
        raise UserError(f'--data_path {args.data_path}: its images have only {different} different colours, '
                        f'fewer than --colours {args.colours}; give more images or fewer colours')
    print(f'k-means of {args.colours} colours over {len(pixels)} pixels of {len(chosen) - len(failed)} images ...')
    centres = fit(pixels, args.colours, args.seed)
    buffer = io.BytesIO()
    np.save(buffer, centres)
    files.write_bytes(target, buffer.getvalue())
    nearest = codebook.to_rgb(centres)[codebook.Tokenizer(centres)(pixels)]
    distance = np.sqrt(((nearest.astype(np.float64) - pixels) ** 2).sum(-1)).mean()
    print(f'{target}: {len(centres)} colours, mean distance of a pixel to its colour {distance:.2f} levels')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(run(main))
