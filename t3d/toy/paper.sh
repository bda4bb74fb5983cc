#!/bin/sh
# The paper's tables at toy scale, in toy_paper/: one rollout, students per row and seed, tables 1 to 7 of the first seed,
# one report, and the page that compares all seeds.  Everything finished is kept: a second run reuses it and a killed one
# goes on.  PAPER_SEEDS ("1 2 3"), PAPER_ROLLOUTS, PAPER_STEPS and PAPER_PROBLEMS make it smaller; PAPER_PROCS students are
# worked on at a time.
set -eu
python=$(pwd)/$BIN/python
problems=${PAPER_PROBLEMS:-500}
seeds=$(echo ${PAPER_SEEDS:-1 2 3 4 5} | tr ' ' ',')

echo "== 1. rollout, students, evaluations"
"$python" -m t3d.arena config=configs/toy/arena/paper.yaml seeds="[$seeds]" num_problems="$problems" \
    num_rollouts="${PAPER_ROLLOUTS:-2500}" common="training.max_steps=${PAPER_STEPS:-200}" processes="${PAPER_PROCS:-2}"

echo "== 2. tables of the first seed, report, page of all seeds"
for number in 1 2 3 4 5 6 7; do
    "$python" eval.py config=configs/toy/tables/table$number.yaml evaluation.limit="$problems"
done
"$python" -m t3d.tables.meter config=configs/toy/tables/table1.yaml evaluation.limit="$problems"
"$python" -m t3d.tables.report toy_paper/results/table[1-7].json toy_paper/results/meter-table1.json \
    --out toy_paper/results/report.html
"$python" -m t3d.arena.page toy_paper/results/paper.json --out toy_paper/results/page.md
echo "report: toy_paper/results/report.html (and table1.md, .csv, .tex, .json, ...); all seeds: toy_paper/results/page.md"
