from . import (
    alignment as alignment,
    clip as clip,
    conversion as conversion,
    distances as distances,
    features as features,
    inception as inception,
    influence as influence,
    intervals as intervals,
    leakage as leakage,
    lpips as lpips,
    lpips_files as lpips_files,
    moments as moments,
    paired as paired,
    pixels as pixels,
    preferences as preferences,
    rewards as rewards,
    similarity as similarity,
    sources as sources,
    spectrum as spectrum,
    statistics as statistics,
    text as text,
)
from .distances import (
    PROTOCOLS as PROTOCOLS,
    Distance as Distance,
    frechet_distance as frechet_distance,
    kernel_distance as kernel_distance,
)
from .features import Features as Features
from .frechet import frechet as frechet
from .inception import RESIZES as RESIZES, read_inception as read_inception
from .intervals import Interval as Interval, bootstrap as bootstrap
from .lpips import read_features as read_features, read_lpips as read_lpips
from .moments import Moments as Moments
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
