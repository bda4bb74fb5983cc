#!/bin/sh
# The whole method on the built-in model: each line is a command that a real run uses, with a toy configuration.
# Every stage keeps what it finished, so a second run reuses it and a killed one goes on.
set -eu
python=$(pwd)/$BIN/python
mkdir -p demo/data
for split in train test; do
    limit=2500
    [ $split = test ] && limit=500
    [ -f demo/data/TinyMath_$split.json ] ||
        "$python" -m t3d.toy.problems --split $split --limit $limit --out demo/data/TinyMath_$split.json
done

echo "== 1. rollout: the teacher decodes one token per step"
(cd sample && "$python" sdar_sample.py config=../configs/toy/sdar_sample.yaml)

echo "== 2. preprocess"
cp demo/temp_data/outputs-eval-teacher-TinyMath_train.json demo/data/teacher-TinyMath_train.json
(cd demo/data && "$python" ../../data/rename_key.py --model_name teacher --dataset TinyMath_train)

echo "== 3. train the student with T3D"
[ -d demo/train/ckpt/student ] ||
    "$python" train/self_ddo_sdar_full.py config=configs/toy/t3d.yaml

echo "== 4. evaluate teacher and student"
"$python" eval.py config=configs/toy/demo.yaml
"$python" -m t3d.tables.report demo/results/table.json --out demo/results/report.html
echo "report: demo/results/report.html (and table.md, table.json)"
