#!/bin/sh
# Trains the teacher of the GSM-Symbolic world from random weights, with the script that a real model is trained with;
# it lies in build/toy_world/run/ckpt/teacher.  A killed run goes on where it was.  Needs `pip install -e '.[world]'`.
# More keys win: BIN=.venv/bin t3d/toy/train_world_teacher.sh training.max_steps=500
set -eu
work=build/toy_world
"$BIN/python" -m t3d.toy.base --world GSMSymbolic --out $work/base
"$BIN/python" -m t3d.toy.gsm_symbolic --split train --limit 100000 --solutions --out $work/train.json
"$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/world/teacher.yaml "$@"
