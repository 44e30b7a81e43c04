"""One-line mistakes that the suite must catch: `python -m tests.mutations [PART OF A FILE'S NAME ...]`.

Each is put into a copy of the repository, alone, and the tests beside it are run there: they must fail. Run it after
tests were merged, shrunk or thrown away; it takes about ten minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutation(NamedTuple):
    """A line of the library, the mistake in its place, and the tests that look there."""

    file: str
    right: str
    wrong: str
    tests: str


MUTATIONS = [
    Mutation(f"asyncpatch_jax/{file}", right, wrong, tests)
    for file, right, wrong, tests in (
        # noise processes
        (
            "process.py",
            "return -process.sigma(t), process.alpha(t)",
            "return process.sigma(t), process.alpha(t)",
            "process",
        ),
        ("process.py", "det = alpha * b - sigma * a", "det = alpha * b + sigma * a", "process"),
        ("process.py", "return t * self.num_steps - 1.0", "return t * self.num_steps", "process schedulers"),
        ("process.py", "(ratio * process.sigma(t)) ** 2", "ratio * process.sigma(t) ** 2", "solvers"),
        # solvers and the loop
        ("sampling/solvers.py", "sigma_next**2 - s**2, 0.0", "sigma_next**2, 0.0", "solvers"),
        ("sampling/solvers.py", "* (slope + slope_next)", "* (slope + slope)", "solvers"),
        ("sampling/solvers.py", "0.5 * h / jnp.where(usable, h_prev, 1.0)", "0.5", "solvers"),
        ("sampling/solvers.py", "carry < self.zigzags", "carry <= self.zigzags", "zigzag"),
        (
            "sampling/loop.py",
            "jnp.where(moved, stepped, state.x)",
            "jnp.where(True, stepped, state.x)",
            "loop",
        ),
        # fields
        ("timefield.py", "noisy = field > 0", "noisy = field >= 0", "timefield"),
        ("timefield.py", "return cells.max(axis + 1)", "return cells.min(axis + 1)", "timefield"),
        ("timefield.py", "jnp.where(where, index + k, index)", "jnp.where(where, index, index)", "timefield guidance"),
        # latents
        ("pretrained/autoencoders.py", "jnp.where(mask > 0.5, 0.0, images)", "images", "autoencoders"),
        ("pretrained/autoencoders.py", "x / scale + shift", "x * scale + shift", "autoencoders"),
        ("data/encoded.py", "apart**2 * count * part.count / total", "apart**2 * part.count / total", "encoded"),
        ("data/encoded.py", "(copies.astype(np.float32) - self.shift)", "copies.astype(np.float32)", "encoded"),
        ("data/encoded.py", "_sidecar(path).exists() and path.exists()", "path.exists()", "encoded"),
        (
            "data/dataset.py",
            'record["mirrored"] if "mirrored" in record else record["image"][:, ::-1]',
            'record["image"][:, ::-1]',
            "encoded",
        ),
        # schedules
        (
            "sampling/schedules/curves.py",
            "(excess / left + k / num_steps)",
            "(excess / left) + k / num_steps",
            "curves",
        ),
        ("sampling/schedules/curves.py", "bend * k * (left - 1)", "bend * k * left", "curves"),
        ("sampling/schedules/autoregressive.py", "own_step >= n, 1, 2", "own_step > n, 1, 2", "schedules"),
        ("sampling/schedules/uncertainty.py", "must = n - (n - 1.0 - i)", "must = n - (n - i)", "schedules"),
        ("sampling/schedules/uncertainty.py", "* part / self.substeps", "* (part - 1) / self.substeps", "schedules"),
        ("sampling/schedules/repaint.py", "resample - 1 for level", "resample for level", "schedules"),
        ("sampling/schedules/grids.py", "(1.0 + (shift - 1.0) * t)", "(1.0 + shift * t)", "schedules schedulers"),
        ("sampling/schedules/masks.py", "maps >= threshold * mean", "maps > threshold * mean", "concave_cells"),
        ("sampling/schedules/tpm.py", "1.0 + self.gain * (timefield", "1.0 - self.gain * (timefield", "tpm_schedule"),
        # inpainting
        (
            "sampling/inpainting/base.py",
            "keys_lib.fold_in(task.keys, _STEP + i)",
            "keys_lib.fold_in(task.keys, _STEP)",
            "inpainting",
        ),
        (
            "sampling/inpainting/gradient.py",
            "(missing**2).sum((1, 2, 3), keepdims=True)",
            "(missing**2).sum()",
            "inpainting",
        ),
        ("sampling/inpainting/deqir.py", "depth[1:] - depth[:-1]", "depth[:-1] - depth[1:]", "inpainting"),
        # guidance
        ("sampling/guidance/context.py", "* (s - s_plus)", "* (s_plus - s)", "guidance"),
        ("sampling/guidance/context.py", "1.0 - ratio * (1.0 - t)", "1.0 - (1.0 - t) / ratio", "guidance"),
        # training
        ("beta.py", "2.0 + x + 0.5 * x * x", "2.0 + x + x * x", "tpm"),
        ("training/losses.py", "2 * odds * wronskian", "odds * wronskian", "losses"),
        ("training/losses.py", "bernoulli(k, rate)", "bernoulli(k, 1 - rate)", "losses"),
        ("training/elbo.py", "depth * jnp.exp(-depth) / t", "depth / t", "elbo"),
        ("training/elbo.py", "+ sigma**2 - 1.0 -", "+ sigma**2 -", "elbo"),
        ("training/times.py", "bound - 0.5 * bound *", "bound - bound *", "times"),
        ("training/times.py", "u >= 1.0 - full", "u > 1.0", "times_ends"),
        ("training/times.py", "jnp.maximum(total - second, 0.0)", "jnp.maximum(total - first, 0.0)", "times"),
        ("training/times.py", "jnp.maximum(outside, 0.0)]", "jnp.abs(outside)]", "times"),
        (
            "training/supervised.py",
            "jnp.where(mask > 0.5, told, 0.0)",
            "jnp.where(mask > 0.5, 0.0, told)",
            "supervised",
        ),
        ("denoiser.py", "there = mask <= 0.5", "there = mask >= 0.5", "supervised"),
        ("training/autoencoding.py", "jnp.where(hole, whole, masked)", "masked", "autoencoding"),
        ("training/autoencoding.py", "share = active * self", "share = self", "autoencoding"),
        ("training/grpo.py", "jnp.clip(ratio, 1.0 - clip, 1.0 + clip)", "jnp.clip(ratio, 1.0 - clip, 1.0)", "grpo"),
        ("training/grpo.py", "off / (std + least), 0.0", "off / (std - least), 0.0", "grpo"),
        # data
        ("data/mnist.py", "if len(values) != count or longer:", "if len(values) != count:", "mnist"),
        # networks
        (
            "models/modulated.py",
            "h = h * (1 + film_scale) + film_shift",
            "h = h * film_scale + film_shift",
            "models kernels",
        ),
        ("models/dit.py", "shift, scale = jnp.split", "scale, shift = jnp.split", "models level_times"),
        ("models/unet.py", 'f"up_{level}")(x, times[level - 1]', 'f"up_{level}")(x, times[level]', "models"),
        ("models/quantiser.py", "hold(codes) + (vectors - hold(vectors))", "codes", "quantiser"),
        ("models/quantiser.py", "sums / jnp.maximum(share, 1e-6)[:, None]", "sums", "quantiser"),
        ("models/coders.py", "Conv(self.out, (1, 1)", "Conv(self.out, (3, 3)", "autoencoder"),
        ("models/times.py", "timefield.coarsen(timefield.dense(t), grid)", "timefield.dense(t)", "level_times"),
        ("pretrained/networks/transformer2d.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5", "pretrained_unet"),
        ("pretrained/networks/transformer2d.py", "LAYER_EPS = 1e-5", "LAYER_EPS = 1e-6", "pretrained_unet"),
        ("pretrained/networks/unet2d.py", "eps=given.norm_eps", "eps=1e-5", "pretrained_unet"),
        ("pretrained/networks/autoencoder.py", "EPS = 1e-6", "EPS = 1e-5", "pretrained_autoencoder"),
        ("pretrained/networks/joint.py", "_EPS = 1e-6", "_EPS = 1e-5", "pretrained_sd3 pretrained_flux"),
        (
            "pretrained/networks/rotary.py",
            "np.where(channels % 2, 1, -1)",
            "np.where(channels % 2, -1, 1)",
            "pretrained_flux",
        ),
        ("pretrained/networks/clip.py", "if self.eos == 2 else", "if self.eos == 3 else", "pretrained_clip"),
        # text, masks, metrics
        ("pretrained/text/spans.py", "if a < stop and b > start", "if a <= stop and b > start", "spans"),
        ("pretrained/text/spans.py", "1 / (len(found) * len(places))", "1 / len(places)", "spans"),
        ("data/masks.py", "angle = 2 * np.pi - angle", "angle = np.pi - angle", "masks"),
        ("data/prompts.py", 'number < first[value["image_id"]][0]', "False", "prompt_sets"),
        ("metrics/frechet.py", "- 2.0 * cross", "- cross", "frechet"),
        ("metrics/distances.py", "(size * (size - 1))", "size**2", "kernel_distance"),
        ("metrics/moments.py", "(a.count * share)", "share", "moments"),
        ("metrics/inception.py", "(np.arange(after)[:, None] + offset)", "np.arange(after)[:, None]", "inception"),
        ("pretrained/networks/inception.py", "count_include_pad=False", "count_include_pad=True", "inception"),
        ("pretrained/networks/inception.py", "_maximum(x) if self.last", "_mean(x) if self.last", "inception"),
        ("metrics/influence.py", "np.sqrt(np.maximum(stretches, 0))", "np.maximum(stretches, 0)", "influence"),
        ("metrics/clip.py", "2.5 * positive", "100 * positive", "clip_score"),
        ("metrics/similarity.py", "_K1, _K2 = 0.01, 0.03", "_K1, _K2 = 0.01, 0.01", "similarity"),
        ("metrics/leakage.py", ".max((2, 4)) > 0.5", ".min((2, 4)) > 0.5", "leakage"),
        ("metrics/leakage.py", "[..., 0] > 0.5] ** 2)", "[..., 0] < 0.5] ** 2)", "leakage"),
        ("metrics/text.py", "cosines.max(1)[candidate", "cosines.mean(1)[candidate", "text_scores"),
        ("pretrained/networks/lpips.py", "if pool.ceil else 0)", "if not pool.ceil else 0)", "lpips"),
    )
]


def caught(mutation: Mutation, root: Path = ROOT) -> bool:
    """Whether the tests of a copy of the repository at `root` with that one mistake fail."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "repository"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__", ".*_cache"))
        file = copy / mutation.file
        text = file.read_text()
        if text.count(mutation.right) != 1:
            raise ValueError(f"expected {mutation.right!r} once in {mutation.file}, got {text.count(mutation.right)}")
        file.write_text(text.replace(mutation.right, mutation.wrong))
        tests = [f"tests/test_{test}.py" for test in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{mutation.file}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.returncode == 1


def main(parts: list[str]) -> int:
    """Print what is caught of the mutations whose file has one of `parts` in its name; 1 if anything is not."""
    chosen = [mutation for mutation in MUTATIONS if not parts or any(part in mutation.file for part in parts)]
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, found in zip(chosen, pool.map(caught, chosen), strict=True):
            missed += not found
            print(
                f"{'caught' if found else 'MISSED'}  {mutation.file}: {mutation.right}  ->  {mutation.wrong}",
                flush=True,
            )
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
