#!/bin/sh
# Trains the teacher of the GSM-Symbolic world from the built-in one's weights, with the script that a real model is
# trained with.  A killed run goes on where it was.  The teacher is build/toy_world/run/ckpt/teacher.
# Needs `pip install -e '.[world]'`.
# Keys given here win: BIN=.venv/bin TOY_WORK=/tmp/try t3d/toy/train_world_teacher.sh training.max_steps=5
set -eu
work=${TOY_WORK:-build/toy_world}
"$BIN/python" -m t3d.toy.base --world GSMSymbolic --weights t3d/toy/teacher --out $work/base
"$BIN/python" -m t3d.toy.gsm_symbolic --split train --limit 100000 --solutions --out $work/train.json
"$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/world/teacher.yaml experiment.output_dir=$work/run \
    model.pretrained_model=$work/base dataset.optimization_data=$work/train.json "$@"
