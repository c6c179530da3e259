"""A flag that is typed and has no effect is refused, or warned of where earlier programs had it."""

from __future__ import annotations

import pytest

from embedding_learning.cli import unused_flags
from embedding_learning.cli.train_flags import parse, unused_earlier_flags
from embedding_learning.errors import UsageError

# By the flag without effect: flags among which it has none.
REFUSED = {
    "--beta-per": ["--loss=triplet --beta-per=image", "--loss=contrastive --beta-per class"],
    "--lr-mult-backbone": ["--optimizer=adadelta --lr-mult-backbone=0.1"],
    "--beta-optimizer": [
        "--loss=triplet --beta-optimizer=adam", "--lr-beta=0 --beta-optimizer=adam",
    ],
    "--cutoff": ["--sampling=random --cutoff=0.4", "--loss=proxy-nca --cutoff=0.4"],
    "--nonzero-loss-cutoff": [
        "--sampling=hard --nonzero-loss-cutoff=none",
        "--loss=multi-similarity --nonzero-loss-cutoff=none",
    ],
    "--scale": ["--scale=3", "--loss=triplet --scale=3"],
    "--lr-proxies": [
        "--lr-proxies=0.1", "--loss=multi-similarity --lr-proxies=0.1",
        "--loss=arcface --optimizer=adadelta --lr-proxies=0.1",
    ],
    "--memory": ["--loss=arcface --memory=5"],
    "--memory-from": ["--memory-from=1", "--memory=9 --memory-from=3 --epochs=3"],
    "--negatives": ["--negatives=batch", "--negatives=batch --gpus=0"],
    "--sampling": ["--loss=proxy-nca --sampling=distance-weighted"],
    "--held-out-fold": ["--held-out-fold=2"],
    "--wd-exclude-bn-bias": ["--wd=0 --wd-exclude-bn-bias"],
    "--cpu-contexts": ["--gpus=0 --cpu-contexts=1", "--gpus=0,1 --cpu-contexts=2"],
    "--pretrained-params": ["--pretrained-params=a.params --init-from=b.params"],
    "--checkpoint-interval": [
        "--checkpoint-interval=200", "--checkpoint-interval=20 --batch-num=10",
    ],
}  # fmt: skip
WARNED = {
    "--lr-beta": ["--loss=triplet --lr-beta=0.1"],
    "--beta": ["--loss=contrastive --beta=1.2"],
    "--nu": ["--loss=triplet-euclidean --nu=0.1", "--lr-beta=0 --nu=0.1", "--lr-beta=-1 --nu=0.1"],
    "--lr": ["--optimizer=AdaDelta --lr=0.1"],
    "--margin": ["--loss=proxy-nca --margin=0.1"],
    "--normalize-weights": ["--loss=proxy-anchor --normalize-weights"],
    "--momentum": ["--momentum=0.9", "--optimizer=nag --momentum=0.5"],
    "--factor": ["--factor=0.1 --epochs=12", "--factor=0.1 --steps=100"],
    "--batch-size": ["--batch-size=70 --total-batch-size=70"],
    "--kvstore": ["--kvstore=local", "--kvstore=device --gpus=1"],
    "--use-pretrained": ["--use-pretrained --pretrained-params=a.params"],
}
# Near them: flags that all have an effect.
EFFECTIVE = [
    "--beta-per=image --nu=0.1 --beta=1 --lr-beta=0.2", "--optimizer=SGD --momentum=0.5",
    "--optimizer=adadelta --lr-beta=0.1", "--wd-exclude-bn-bias", "--gpus=0,1 --kvstore=local",
    "--cpu-contexts=2 --batch-size=10 --kvstore=local", "--init-from=b.params --use-pretrained",
    "--pretrained-params=a.params", "--checkpoint-interval=199", "--total-batch-size=70",
    "--negatives=batch --cpu-contexts=2", "--memory=9 --memory-from=2 --epochs=3",
    "--loss=proxy-nca --scale=3 --lr-proxies=0.1", "--loss=multi-similarity --margin=0 --scale=40",
    "--factor=0.1", "--steps=100 --epochs=5", "--lr-beta=0 --beta=1.1",
    "--held-out=0.2 --held-out-fold=2",
    # What comes with a preset is not typed.
    "--preset=paper-cub --loss=triplet", "--preset=paper-sop --total-batch-size=80",
    # The same command goes on with a run.
    "--pretrained-params=a.params --resume=auto", "--init-from=b.params --resume=auto",
    # The rate of its convolutions.
    "--pretrained-params=a.params --resume=b.params",
]  # fmt: skip


@pytest.mark.parametrize("flag, flags", [(f, some) for f, all_ in REFUSED.items() for some in all_])
def test_a_flag_of_this_program_is_refused(flag: str, flags: str) -> None:
    with pytest.raises(UsageError, match=rf"^{flag}: has no effect: [^\n]+; leave it out$"):
        parse(flags.split())
    # A run that exists with such flags can still be reported.
    assert parse(flags.split(), is_past=True)


@pytest.mark.parametrize("flag, flags", [(f, some) for f, all_ in WARNED.items() for some in all_])
def test_a_flag_of_an_earlier_program_is_warned_of(flag: str, flags: str) -> None:
    (line,) = unused_earlier_flags(flags.split(), parse(flags.split()))
    assert line.startswith(f"{flag}: has no effect: ")


@pytest.mark.parametrize("flags", EFFECTIVE)
def test_flags_with_an_effect_are_taken_in_silence(flags: str) -> None:
    assert unused_earlier_flags(flags.split(), parse(flags.split())) == []


def test_every_row_of_the_table_is_tried() -> None:
    tried = {flag.lstrip("-").replace("-", "_") for flag in (*REFUSED, *WARNED)}
    assert tried == {case.flag for case in unused_flags._CASES}
