"""The published files of a metric's network into the folder that it is read from. Nothing is downloaded.

  python -m launch.convert_metric pick_score PickScore_v1/model.safetensors --tokenizer=CLIP-ViT-H-14 --out=rewards/pick
  python -m launch.convert_metric hps_v2.1 HPS_v2.1_compressed.pt --tokenizer=CLIP-ViT-H-14 --out=rewards/hps
  python -m launch.convert_metric image_reward ImageReward.pt --tokenizer=bert-base-uncased --out=rewards/image_reward
  python -m launch.convert_metric inception pt_inception-2015-12-05-6726825d.pth --out=weights/inception
  python -m launch.convert_metric aesthetic sac+logos+ava1-l14-linearMSE.pth clip-vit-large-patch14/model.safetensors \
    --out=rewards/aesthetic
  python -m launch.convert_metric lpips_alex alexnet-owt-7be5be79.pth lpips/weights/v0.1/alex.pth --out=weights/lpips

docs/metrics.md and docs/rewards.md say where the files are. Files that are not safetensors need PyTorch.
"""

from absl import flags

from asyncpatch_jax.metrics.conversion import convert
from asyncpatch_jax.metrics.sources import SOURCES
from launch.shared import cli


def main(name: str, *files: str) -> None:
    values = flags.FLAGS
    if values.out is None:
        raise ValueError("expected --out=FOLDER for the converted files, got none")
    convert(name, files, values.out, values.tokenizer)
    print(f"{values.out}: read it by {SOURCES[name].reader.format(name=name, folder=values.out)}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to write, new or empty.")
    flags.DEFINE_string("tokenizer", None, "Folder of the tokenizer that reads its prompts, to be copied.")
    cli.main_of_flags(main, __doc__, takes=("NAME", "FILE..."))
