from . import (
    alignment as alignment,
    clip as clip,
    conversion as conversion,
    intervals as intervals,
    lpips as lpips,
    lpips_files as lpips_files,
    paired as paired,
    pixels as pixels,
    preferences as preferences,
    rewards as rewards,
    similarity as similarity,
    spectrum as spectrum,
    text as text,
)
from .frechet import frechet as frechet
from .intervals import Interval as Interval, bootstrap as bootstrap
from .lpips import read_features as read_features, read_lpips as read_lpips
from .paired import Paired as Paired
from .preferences import REWARDS as REWARDS, read_reward as read_reward
from .rewards import (
    Reward as Reward,
    classifier as classifier,
    combine as combine,
    composed as composed,
    from_callable as from_callable,
)
from .similarity import HOLE_RMSE as HOLE_RMSE, PSNR as PSNR, SSIM as SSIM
