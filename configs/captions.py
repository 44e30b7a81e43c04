"""Your own pictures with texts: a UNet that is told what to show, and takes a noise level per cell.

    python -m launch.train --config=configs/captions.py --config.data.path=DIRECTORY --config.text.encoder=FOLDER
    python -m launch.sample --workdir=runs/captions --prompt="a red square" --guidance=4
    python -m launch.inpaint --workdir=runs/captions --image=a.png --mask=m.png --prompt="a red square" --out=b.png

docs/data.md says what captioned pictures may look like; the encoder is a folder of CLIP's, T5's or BERT's (MiniLM),
with its tokenizer in it or beside it, and does not learn. Made for a GPU.

`--config=configs/captions.py:smoke` needs no files of yours. It learns captioned scenes of digits for seconds, with the
text encoder of a very small network that the first of these commands trains:

    python -m launch.studies.train_scenes --family=sd --tiny --cycles=8 --workdir=runs/scenes_smoke
    python -m launch.train --config=configs/captions.py:smoke
"""

from ml_collections import ConfigDict

from configs.base import settings, shrink


def get_config(arg: str = "") -> ConfigDict:
    """A UNet on 64x64 centre squares, with attention to texts on its two coarser levels."""
    config = settings(arg)
    config.workdir = "runs/captions"
    config.data.update({"name": "captions", "size": 64, "channels": 3})
    config.model.update(
        {"base": 64, "multipliers": (1, 2, 3), "blocks": 2, "attention": (1, 2), "head_dim": 64, "dropout": 0.1}
    )
    config.optim.update({"learning_rate": 3e-4, "warmup": 1000, "ema": 0.9995})
    config.train.update({"steps": 50_000, "batch": 64, "checkpoint_every": 1000, "sample_every": 5000})
    config.sample.update({"steps": 100, "guidance": 3.0})
    if arg == "smoke":
        config.data.update({"name": "scenes", "size": 24, "channels": 1})
        config.text.encoder = "runs/scenes_smoke/pipeline/text_encoder"
        return shrink(config)
    config.text.length = 64
    return config
