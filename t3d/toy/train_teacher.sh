#!/bin/sh
# Trains the built-in teacher from random weights, with the scripts that a real model is trained with: one long run,
# and a second one from its end on fresh problems at half the rate.  A killed run goes on where it was.
set -eu
work=${TOY_WORK:-build/toy}
out=${TOY_OUT:-t3d/toy/teacher}
train() {
    "$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/teacher.yaml experiment.resume_from=latest \
        experiment.output_dir=$work/run model.pretrained_model=$work/base dataset.optimization_data=$work/train.json "$@"
}

"$BIN/python" -m t3d.toy.base --out $work/base
"$BIN/python" -m t3d.toy.problems --split train --limit 100000 --solutions --out $work/train.json
train
"$BIN/python" -m t3d.toy.problems --split train --seed 1 --limit 100000 --solutions --out $work/train_more.json
train experiment.output_dir=$work/run_more model.pretrained_model=$work/run/ckpt/teacher model.random_init=false \
    dataset.optimization_data=$work/train_more.json training.max_steps=3500 training.seed=10087 \
    optimizer.params.learning_rate=1e-3
rm -rf "$out"
cp -r $work/run_more/ckpt/teacher "$out"
