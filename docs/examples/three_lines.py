"""Pretrain on a folder of photographs, then embed them: python three_lines.py photos/ runs/a"""

import sys

import mixco

photos, out = sys.argv[1:]

if __name__ == "__main__":  # processes that decode large images import this file too
    run = mixco.pretrain(data=photos, out=out, epochs=2, size=32, arch="resnet10t", batch_size=64)
    encoder = mixco.load_encoder(out)
    vectors = encoder.embed(photos)

    print(f"loss of the last epoch: {run.metrics[-1]['loss']:.3f}")
    print(f"{len(vectors)} images, {vectors.shape[1]} numbers each")
    print(f"the first two: {vectors[0] @ vectors[1]:.3f} alike")
