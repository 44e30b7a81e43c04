from . import folders as folders, networks as networks, text as text
from .autoencoders import Autoencoder as Autoencoder, read_autoencoder as read_autoencoder
from .binding import bind as bind
from .folders.inspection import inspect as inspect
from .folders.loading import (
    Component as Component,
    Pretrained as Pretrained,
    load_component as load_component,
    load_pretrained as load_pretrained,
)
from .folders.saving import save_component as save_component, save_pretrained as save_pretrained
from .folders.schedulers import Scheduler as Scheduler
from .pipelines import Made as Made, text2image as text2image
from .requests import Request as Request
from .sampling import Inputs as Inputs, Net as Net, Sampled as Sampled, sample_latents as sample_latents
from .settings import Settings as Settings, defaults as defaults
from .text.objects import noun_phrases as noun_phrases
from .text.prompts import encode_prompts as encode_prompts
