"""The parts of `train.finetune`: its options, its clock, what its parts share, and each part."""
