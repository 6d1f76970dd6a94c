"""`mixco linear --protocol paper`, for hands that are used to the code of 2020.

    python lincls.py --exp-name NAME --lr 3.0 --epochs 100 --schedule 60 80

evaluates the run folder runs/NAME; --pretrained takes another, or a checkpoint (docs/checkpoints.md).
"""

from mixco.compat_2020 import linear_options, main

if __name__ == "__main__":
    main("linear", linear_options)
