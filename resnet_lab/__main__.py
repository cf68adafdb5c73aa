"""`resnet-lab VERB …`: the verbs, each a module of its own; imports nothing heavy."""

from __future__ import annotations

import os
import sys

from resnet_lab.command_line import begin

VERBS = {
    "train": "[-m] key=value …            one run, or with -m a sweep, each job in its own process and folder",
    "evaluate": "RUN_OR_CKPT [split=test] [key=value …]   score a trained model on a split or another data set",
    "predict": "RUN_OR_CKPT IMAGE_OR_FOLDER [out=predictions.csv] [overwrite=true]   grade photographs without labels",
    "prepare": "key=value … [processes=N]   crop and resize photographs once, and report on the data",
    "status": "DIR …                       how far the jobs are: done, running, failed, missing",
    "report": "DIR … [metric=NAME] [out=DIR] [figures=NAME,…] [--check]   what the runs of sweeps compare to",
}
USAGE = "\n".join(
    [
        "usage: resnet-lab VERB …",
        "",
        *(f"  resnet-lab {verb} {text}" for verb, text in VERBS.items()),
        "",
        "  resnet-lab train --cfg job      print the configuration;   resnet-lab train --help   its groups",
        "  python -m resnet_lab.job RUN    start or resume any run folder",
        "  tensorboard --logdir runs       watch",
    ]
)


def main() -> int:
    """Replace this process by the verb's own, so that Hydra and DDP's children see a plain `python -m`."""
    begin()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    verb, *arguments = sys.argv[1:]
    if verb not in VERBS:
        print(f"error: no verb {verb!r}; choose {', '.join(VERBS)} (resnet-lab --help)", file=sys.stderr)
        return 2
    if verb != "train" and {"-h", "--help"} & set(arguments):  # train's help is Hydra's
        print(f"usage: resnet-lab {verb} {VERBS[verb]}")
        return 0
    return os.execv(sys.executable, [sys.executable, "-m", f"resnet_lab.{verb}", *arguments])


if __name__ == "__main__":
    sys.exit(main())
