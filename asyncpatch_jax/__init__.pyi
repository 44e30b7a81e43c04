from . import (
    data as data,
    denoiser as denoiser,
    files as files,
    keys as keys,
    metrics as metrics,
    models as models,
    pretrained as pretrained,
    process as process,
    sampling as sampling,
    sharding as sharding,
    timefield as timefield,
    training as training,
    types as types,
    viz as viz,
)
from .denoiser import bind as bind
from .models import DiT as DiT, UNet as UNet
from .process import diffuse as diffuse, predict as predict
from .sampling import paste_back as paste_back, sample as sample, start as start
from .types import Condition as Condition, FewTimes as FewTimes, Prediction as Prediction, Times as Times

__version__: str
