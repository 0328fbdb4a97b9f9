#!/bin/sh
# The whole way on two CPU cores, read from top to bottom: a corpus, a sweep over loops, a longer run
# of what won, and what it is worth. Some eight minutes. With GPUs: model=plt_20m, data=packages.
#
#     examples/whole_way.sh [FOLDER]        everything is written to FOLDER, by default ./whole_way
set -e
out=${1:-whole_way}
mkdir -p "$out"

# 1. A corpus: text and code that any Python installation carries, cleaned, deduplicated, tokenised
#    and balanced 1 : 1. The last line of stdout is its folder; report.html there shows what is in it.
#    (Your own: data=files path=~/src.)  A few seconds; about 1.4M tokens of each.
corpus=$(loopcoder data | tail -n 1)
echo "corpus: $corpus"

# 2. How many loops? The same steps on the same data in the same order, one run after the other,
#    and one table at the end (sweep.md, sweep.png). Some three minutes. 300 steps of a tiny model
#    are too few for loops to pay: expect about 5.69 for R = 1 and 5.83 for R = 2, nats per token.
loopcoder train -m data=corpus path="$corpus" model.num_loops=1,2 train.max_steps=300 \
    run_dir="$out/sweep"

# 3. The longer run. Stop it with Ctrl-C whenever you like: the same command goes on. Some three
#    minutes for 1,000 steps; validation loss about 5.05 nats per token,
#    of which the second loop brings 0.11.
loopcoder train data=corpus path="$corpus" model.num_loops=2 train.max_steps=1000 \
    run_dir="$out/run"

# 4. What it is worth: by domain and by loop, and what a loop more, or one less, makes of it. A loop
#    that was not trained brings nothing.
loopcoder evaluate checkpoint="$out/run"
loopcoder evaluate checkpoint="$out/run" model.num_loops=3
loopcoder evaluate checkpoint="$out/run" model.num_loops=1

# 5. The same from Python.
python - "$out/run" <<'PYTHON'
import sys

import loopcoder

run = loopcoder.load(sys.argv[1])
program = "def area(width, height):\n    return width * height\n"
print(f"{run.bits_per_byte(program):.2f} bits per byte for\n{program}")
logits = run.logits("def main(")
likely = logits[-1].topk(5).indices.tolist()
print("after 'def main(':", [run.tokenizer.decode([i]) for i in likely])
PYTHON
