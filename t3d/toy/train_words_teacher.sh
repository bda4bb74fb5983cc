#!/bin/sh
# Trains the teacher of a vocabulary with 2000 more names, from the built-in one's weights, with the script that a real
# model is trained with.  A killed run goes on where it was.  The teacher is build/toy_words/run/ckpt/teacher.
# Keys given here win: BIN=.venv/bin TOY_WORK=/tmp/try t3d/toy/train_words_teacher.sh training.max_steps=5
set -eu
work=${TOY_WORK:-build/toy_words}
"$BIN/python" -m t3d.toy.base --names 2000 --weights t3d/toy/teacher --out $work/base
"$BIN/python" -m t3d.toy.problems --names 2000 --split train --limit 100000 --solutions --out $work/train.json
"$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/words/teacher.yaml experiment.output_dir=$work/run \
    model.pretrained_model=$work/base dataset.optimization_data=$work/train.json "$@"
