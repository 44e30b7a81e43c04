"""How good is the judge of captioned scenes? On real scenes of held-out digits, which it has not seen.

  python -m launch.studies.scenes_judge

Prints how it judges them with their own captions, and with captions of other scenes.
"""

from absl import flags

from launch.shared import cli, scenes_judge, seeding


def main() -> None:
    values = flags.FLAGS
    print(f"real test digits named correctly: {scenes_judge.accuracy_of_real():7.1%}")
    own, other = scenes_judge.of_real(values.num, values.seed)
    for name, verdicts in (("their own captions", own), ("other captions", other)):
        alignment, strict = scenes_judge.summary(verdicts)
        print(f"real scenes with {name:18}: alignment {alignment:6.1%}, all claims true {strict:6.1%}")


if __name__ == "__main__":
    flags.DEFINE_integer("num", 2000, "Scenes.", lower_bound=2)
    seeding.define("Seed of the scenes.")
    cli.main_of_flags(main, __doc__)
