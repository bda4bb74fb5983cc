#!/bin/sh
# Trains the built-in teacher from random weights, with the scripts that a real model is trained with.
set -eu
work=build/toy
"$BIN/python" -m t3d.toy.base --out $work/base
"$BIN/python" -m t3d.toy.problems --split train --limit 100000 --solutions --out $work/train.json
"$BIN/python" train/self_ddo_sdar_full.py config=configs/toy/teacher.yaml experiment.resume_from=latest
rm -rf t3d/toy/teacher
cp -r $work/run/ckpt/teacher t3d/toy/teacher
