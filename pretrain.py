"""`mixco pretrain`, for hands that are used to the code of 2020: its options are understood too.

    python pretrain.py --algo mixco -a resnet18 --dataset tiny-imagenet --data-path DATA \\
        --batch-size 128 --lr 0.015 --epochs 100 --cos --mlp --aug-plus --moco-t 0.2 --exp-name NAME

writes the run folder runs/NAME; `python lincls.py --exp-name NAME` evaluates it.
"""

from mixco.compat_2020 import main, pretrain_options

if __name__ == "__main__":
    main("pretrain", pretrain_options)
