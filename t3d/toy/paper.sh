#!/bin/sh
# The paper's tables at toy scale, in toy_paper/: one rollout, a student per row, tables 1 to 7, one report.  Everything
# finished is kept: a second run reuses it and a killed one goes on.  PAPER_ROLLOUTS, PAPER_STEPS and PAPER_PROBLEMS make
# it smaller.
set -eu
python=$(pwd)/$BIN/python
steps=${PAPER_STEPS:-200}
problems=${PAPER_PROBLEMS:-500}
rollouts=${PAPER_ROLLOUTS:-2500}
mkdir -p toy_paper/data

problems_file() { # FILE OPTIONS...
    file=toy_paper/data/$1.json && shift
    [ -f "$file" ] || "$python" -m t3d.toy.problems --out "$file" "$@"
}
train() { # NAME CONFIG KEYS...: a student in toy_paper/train/NAME, by configs/toy/CONFIG.yaml with KEYS
    name=$1 config=$2 && shift 2
    [ -d "toy_paper/train/$name/ckpt/student" ] ||
        "$python" train/self_ddo_sdar_full.py config="configs/toy/$config.yaml" \
            experiment.output_dir="toy_paper/train/$name" training.max_steps="$steps" "$@"
}

echo "== 1. problems, rollout, preprocess"
problems_file TinyMath_train --split train --limit "$rollouts"
problems_file TinyMath_train_solutions --split train --limit "$rollouts" --solutions
problems_file TinyMath_test --split test --limit 500
(cd sample && "$python" sdar_sample.py config=../configs/toy/sdar_sample.yaml experiment.project=toy_paper \
    evaluation.eval_dataset=../toy_paper/data/TinyMath_train.json)
cp toy_paper/temp_data/outputs-eval-teacher-TinyMath_train.json toy_paper/data/teacher-TinyMath_train.json
(cd toy_paper/data && "$python" ../../data/rename_key.py --model_name teacher --dataset TinyMath_train)

echo "== 2. students"
for objective in sft redi dparallel; do
    train $objective $objective
done
# t3d.yaml is the demo's, and reads the demo's rollout.
rollout=dataset.optimization_data=toy_paper/data/teacher-TinyMath_train_renamed.json
train t3d t3d $rollout
for lambda in 0.05 0.2 0.5; do
    train t3d_lambda$lambda t3d $rollout training.lambda_path=$lambda
done
for objective in td ddo; do
    train $objective $objective
    train ${objective}_random $objective model.random_ratio=0.1
    train ${objective}_path $objective training.lambda_path=0.5
    train ${objective}_path_random $objective training.lambda_path=0.5 model.random_ratio=0.1
done

echo "== 3. tables"
for number in 1 2 3 4 5 6 7; do
    "$python" eval.py config=configs/toy/tables/table$number.yaml evaluation.limit="$problems"
done
"$python" -m t3d.tables.report toy_paper/results/table[1-7].json --out toy_paper/results/report.html
echo "report: toy_paper/results/report.html (and table1.md, .csv, .tex, .json, ...)"
