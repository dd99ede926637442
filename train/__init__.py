"""Programs that record, train, evaluate and measure: `python -m train.NAME --help`. Imported by nothing else."""
