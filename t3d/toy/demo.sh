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
graded() { ls -t demo/cells/TinyMath_test-b4-s1-*/results/graded-eval-"$1"*.json | head -n 1; }
"$python" -m t3d.viewer "$(graded teacher)" "$(graded student)" -o demo/results/trajectories.html
"$python" -m t3d.tables.report demo/results/table.json --trajectories trajectories.html --out demo/results/report.html
echo "report: demo/results/report.html (and table.md, table.json)"
echo "trajectories, teacher and student side by side at four tokens per step: demo/results/trajectories.html"
