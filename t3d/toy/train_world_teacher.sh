#!/bin/sh
# Trains the teacher of the GSM-Symbolic world from random weights, as the built-in one is trained: one long run, and a
# second one from its end on fresh problems at half the rate.  A killed run goes on where it was.  The teacher is
# build/toy_world/run_more/ckpt/teacher.  Needs `pip install -e '.[world]'`.
# Keys given here win: BIN=.venv/bin TOY_WORK=/tmp/try t3d/toy/train_world_teacher.sh training.max_steps=5
set -eu
work=${TOY_WORK:-build/toy_world}
problems() {
    "$BIN/python" -m t3d.toy.gsm_symbolic --split train --limit 100000 --solutions "$@"
}
train() {
    "$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/world/teacher.yaml "$@"
}

"$BIN/python" -m t3d.toy.base --world GSMSymbolic --out $work/base
problems --out $work/train.json
train experiment.output_dir=$work/run model.pretrained_model=$work/base dataset.optimization_data=$work/train.json "$@"
problems --seed 1 --out $work/train_more.json
train experiment.output_dir=$work/run_more model.pretrained_model=$work/run/ckpt/teacher model.random_init=false \
    dataset.optimization_data=$work/train_more.json training.seed=10087 optimizer.params.learning_rate=1e-3 "$@"
