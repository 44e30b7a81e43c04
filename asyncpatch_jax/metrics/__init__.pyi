from . import (
    alignment as alignment,
    clip as clip,
    conversion as conversion,
    intervals as intervals,
    pixels as pixels,
    preferences as preferences,
    rewards as rewards,
    spectrum as spectrum,
    text as text,
)
from .frechet import frechet as frechet
from .intervals import Interval as Interval, bootstrap as bootstrap
from .preferences import REWARDS as REWARDS, read_reward as read_reward
from .rewards import (
    Reward as Reward,
    classifier as classifier,
    combine as combine,
    composed as composed,
    from_callable as from_callable,
)
